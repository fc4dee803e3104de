"""What must hold of the top-down stages once they are turned and their widths are known (SPEC 2.2, 2.4, 2.5)."""

from __future__ import annotations

import operator
from collections import Counter

import torch
from torch import fx

from td_compiler.graph.notes import plan
from td_compiler.graph.operators import Kind
from td_compiler.graph.states import TopDown, kind_of
from td_compiler.graph.units import TopDownStage

__all__ = ["check_layers", "check_merge", "check_stage", "has_upsampling"]


def has_upsampling(top_down: TopDown, stage: TopDownStage) -> bool:
    """Whether a stage's map grows already: its upsampling is none of the source's."""
    new = (node for node in stage.graph.nodes if plan(node).source is None and node.op.startswith("call_"))
    return any(kind_of(top_down, node) is Kind.UPSAMPLE for node in new)


def check_merge(top_down: TopDown, stage: TopDownStage) -> None:
    """One merge behind every transition, of the grown map and the entry, and no way around it.

    Raises:
        AssertionError: naming the scale, and what is there instead.
    """
    if stage.transition == "none":
        assert stage.x is None, f"the coarsest stage, {stage.key}, reads a map of another"
        return
    where, how = f"at scale {stage.key}", top_down.options.merge
    joins = [n for n in stage.graph.nodes if plan(n).unit == f"merge.{stage.key}" and plan(n).source is None]
    sums = [node for node in joins if node.target is operator.add]
    cats = [node for node in joins if node.target is torch.cat]
    expected = {"add": (1, 0), "concat": (0, 1), "combined": (1, 1)}[how]
    assert (len(sums), len(cats)) == expected, f"{len(sums)} sums and {len(cats)} concatenations merge {where}: {how!r}"
    convolutions = [node for node in joins if node.target == f"merge.{stage.key}.conv"]
    assert len(convolutions) == len(cats), f"{len(convolutions)} convolutions merge {where}"
    first = (sums or cats)[0]
    read = set(first.all_input_nodes)
    assert stage.entry in read and len(read) == 2, f"the merge {where} does not read its entry and one map"
    assert stage.entry is not None and set(stage.entry.users) <= {*sums, *cats}, f"the entry {where} is read elsewhere"
    # A cell behind the transition reads the map before it too, unmerged (SPEC 2.13).
    again = any(stage.units[0].input in unit.inputs for unit in stage.units[1:])
    around = set() if again else _reached(stage, {*sums, *cats}) & set(stage.arriving[:1])
    assert not around, f"a way leads around the merge {where}"


def _reached(stage: TopDownStage, stop: set[fx.Node]) -> set[fx.Node]:
    """All that a stage's map is made of, up to some nodes."""
    stack = [node for node in stage.graph.output_node().all_input_nodes[:1] if node not in stop]
    reached: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack += [before for before in node.all_input_nodes if before not in stop]
    return reached


def check_stage(top_down: TopDown, stage: TopDownStage) -> None:
    """One entry, one merge, the map that arrives and the entry of one width.

    Raises:
        AssertionError: naming the scale, and what is there instead.
    """
    check_merge(top_down, stage)
    entries = {str(n.target) for n in stage.graph.nodes if n.op == "call_module"}
    entries = {path for path in entries if path.startswith(f"entry.{stage.key}.")}
    assert bool(entries) == (stage.entry is not None), (
        f"the entry at scale {stage.key} has the layers {sorted(entries)}"
    )
    if stage.transition != "none" and top_down.options.merge != "concat":
        assert stage.entry is not None
        join = next(user for user in stage.entry.users if user.target is operator.add)
        widths = [plan(node).width for node in join.all_input_nodes]
        assert len(set(widths)) == 1, f"maps of {widths} channels are added at scale {stage.key}"


def check_layers(top_down: TopDown) -> None:
    """A layer that the source does not have is called from one place.

    Raises:
        AssertionError: naming the layer.
    """
    calls = Counter(str(n.target) for graph in top_down.graphs() for n in graph.find_nodes(op="call_module"))
    twice = [path for path, count in calls.items() if count > 1 and top_down.layers[path].source != path]
    assert not twice, f"the new layer {twice[0]} stands in two places"
