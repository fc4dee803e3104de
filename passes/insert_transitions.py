"""Adapt the width of a map before it grows: a 1x1 convolution, norm and activation (SPEC 2.4)."""

from __future__ import annotations

from td_compiler.graph.checks import has_upsampling
from td_compiler.graph.states import Pass, TopDown
from td_compiler.graph.style import add_layers, style_of

__all__ = ["InsertTransitions"]


class InsertTransitions(Pass[TopDown]):
    """Puts a 1x1 convolution in front of the upsampling of every plain transition.

    It works at the coarser scale. `SetWidths` takes it away where the widths turn out to be equal.
    """

    def requires(self, top_down: TopDown) -> None:
        assert all(has_upsampling(top_down, s) for s in top_down.stages[1:]), "ReplaceDownsampling has not run"

    def apply(self, top_down: TopDown) -> None:
        for stage in top_down.stages:
            if stage.transition == "plain":
                assert stage.x is not None
                reader = next(iter(stage.x.users))
                with stage.graph.inserting_before(reader):
                    path = f"transition.{stage.key}"
                    nodes = add_layers(top_down, stage, style_of(top_down, stage), path, stage.x, 1, stage.width)
                reader.replace_input_with(stage.x, nodes[-1])
                stage.adapted = nodes[-1]

    def ensures(self, top_down: TopDown) -> None:
        for stage in top_down.stages:
            stage.graph.lint()
