"""Adapt the width of a map before it grows: a 1x1 convolution, norm and activation (SPEC 2.4)."""

from __future__ import annotations

from td_compiler.graph.checks import has_upsampling
from td_compiler.graph.states import Conversion, Pass
from td_compiler.graph.style import add_layers, style_of

__all__ = ["InsertTransitions"]


class InsertTransitions(Pass):
    """Puts a 1x1 convolution in front of the upsampling of every plain transition.

    It works at the coarser scale. `SetWidths` takes it away where the widths turn out to be equal.
    """

    def requires(self, conversion: Conversion) -> None:
        assert all(has_upsampling(conversion, s) for s in conversion.stages[1:]), "ReplaceDownsampling has not run"

    def apply(self, conversion: Conversion) -> None:
        for stage in conversion.stages:
            if stage.transition == "plain":
                assert stage.x is not None
                reader = next(iter(stage.x.users))
                with stage.graph.inserting_before(reader):
                    path = f"transition.{stage.key}"
                    nodes = add_layers(conversion, stage, style_of(conversion, stage), path, stage.x, 1, stage.width)
                reader.replace_input_with(stage.x, nodes[-1])
                stage.adapted = nodes[-1]

    def ensures(self, conversion: Conversion) -> None:
        for stage in conversion.stages:
            stage.graph.lint()
