"""Merge the grown map with the entry of its scale (SPEC 2.5)."""

from __future__ import annotations

import operator

import torch

from td_compiler.graph.checks import check_merge
from td_compiler.graph.notes import Plan, noted
from td_compiler.graph.states import Pass, TopDown
from td_compiler.graph.style import add_layers, style_of
from td_compiler.graph.units import TopDownStage
from td_compiler.passes.reverse_stages import copy_unit

__all__ = ["InsertMerges"]


class InsertMerges(Pass[TopDown]):
    """After every transition: `x + e`, or a 3x3 convolution over `[x, e]` or `[x + e, e]`, then what stood between."""

    def requires(self, top_down: TopDown) -> None:
        assert all(stage.entry is not None for stage in top_down.stages[1:]), "InsertEntries has not run"

    def apply(self, top_down: TopDown) -> None:
        for stage in top_down.stages[1:]:
            _merge(top_down, stage)

    def ensures(self, top_down: TopDown) -> None:
        for stage in top_down.stages:
            stage.graph.lint()
            assert stage.entry is None or stage.entry.users, f"the entry of scale {stage.key} is not used"
            check_merge(top_down, stage)


def _merge(top_down: TopDown, stage: TopDownStage) -> None:
    x, entry, graph = stage.arrival, stage.entry, stage.graph
    assert x is not None and entry is not None
    path, how = f"merge.{stage.key}", top_down.options.merge
    with graph.inserting_before(entry.next):
        value, readers = x, []
        if how in {"add", "combined"}:
            value = graph.call_function(operator.add, (x, entry))
            noted(value, Plan(path))
            readers.append(value)
        if how in {"concat", "combined"}:
            value = graph.call_function(torch.cat, ([value, entry], 1))
            noted(value, Plan(path))
            readers.append(value)
            value = add_layers(top_down, stage, style_of(top_down, stage), path, value, 3, stage.width)[-1]
        for unit in stage.between:
            value = copy_unit(top_down, stage, unit, value)
    stage.redirect(x, value, keep=readers)
