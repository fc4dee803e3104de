"""Draw the masks of dropout faster (see `td_compiler.layers.dropout`)."""

from __future__ import annotations

from torch import nn

from td_compiler.graph.states import Building, Pass
from td_compiler.layers.dropout import FastDropout

__all__ = ["ReplaceDropout"]


class ReplaceDropout(Pass[Building]):
    """Dropout of maps takes the form that is fast on a CPU; that of vectors, in the head, is cheap as it is."""

    def requires(self, building: Building) -> None:
        assert building.modules, "there is no layer"

    def apply(self, building: Building) -> None:
        if not building.options.fast:
            return
        for stage in building.stages:
            for node in stage.graph.find_nodes(op="call_module"):
                old = building.modules[str(node.target)]
                if type(old) is nn.Dropout and not old.inplace:
                    building.modules[str(node.target)] = FastDropout(old.p).train(old.training)

    def ensures(self, building: Building) -> None:
        pass
