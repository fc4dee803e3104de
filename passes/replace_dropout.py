"""Draw the masks of dropout faster (see `td_compiler.layers.dropout`)."""

from __future__ import annotations

from torch import nn

from td_compiler.graph.states import Conversion, Pass
from td_compiler.layers.dropout import FastDropout

__all__ = ["ReplaceDropout"]


class ReplaceDropout(Pass):
    """Dropout of maps takes the form that is fast on a CPU; that of vectors, in the head, is cheap as it is."""

    def requires(self, conversion: Conversion) -> None:
        assert conversion.modules, "BuildLayers has not run"

    def apply(self, conversion: Conversion) -> None:
        if not conversion.options.fast:
            return
        for stage in conversion.stages:
            for node in stage.graph.find_nodes(op="call_module"):
                old = conversion.modules[str(node.target)]
                if type(old) is nn.Dropout and not old.inplace:
                    conversion.modules[str(node.target)] = FastDropout(old.p).train(old.training)

    def ensures(self, conversion: Conversion) -> None:
        pass
