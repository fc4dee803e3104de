"""Swap strides and poolings for upsampling (SPEC 2.4, 2.9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler.capture.meta import META
from td_compiler.graph.axes import channel_axis, in_order
from td_compiler.graph.notes import Plan, facts, noted, plan, source_of
from td_compiler.graph.operators import Kind, Pair
from td_compiler.graph.states import Pass, TopDown, kind_of, layer_of, operator_of
from td_compiler.graph.units import Layer, TopDownStage, Unit
from td_compiler.graph.walks import ancestors
from td_compiler.layers.upsample import TransposedUpsample, upsample_aligned, upsample_bilinear, upsample_nearest
from td_compiler.passes.nodes import is_spatial
from td_compiler.passes.same_size import is_balanced, keep_size, pads_for, with_padding

__all__ = ["ReplaceDownsampling"]


class ReplaceDownsampling(Pass[TopDown]):
    """No operator of a body changes the size of its map any more, but for the upsampling of a transition.

    In a unit that reads a map of a coarser stage (a transition block, a cell behind it that reads the output before it
    as well) the upsampling stands before its strided operators or, in a block without, before the first
    operator with spatial extent of every path. What needs no extent (1x1 convolutions, norms) runs before it, at the
    coarser scale, which is the same and cheaper. A plain transition upsamples before anything else.
    """

    def requires(self, top_down: TopDown) -> None:
        assert all(stage.width for stage in top_down.stages), "ArrangeFilters has not run"
        assert "MatchShortcuts" in top_down.done, "MatchShortcuts has not run"

    def apply(self, top_down: TopDown) -> None:
        for stage in top_down.stages:
            if stage.transition == "plain":
                _grow_map(top_down, stage)
            for unit in stage.units:
                if small := _small_inputs(stage, unit):
                    _grow_unit(top_down, stage, unit, small)
                kept = [node for node in stage.spans[unit] if not keep_size(top_down, stage, unit, node)]
                stage.spans[unit] = [each for node in kept for each in with_padding(top_down, stage, node)]
                for node in stage.spans[unit]:
                    _return_to_size(top_down, stage, unit, node)

    def ensures(self, top_down: TopDown) -> None:
        for stage in top_down.stages:
            for node in stage.graph.nodes:
                layer = layer_of(top_down, node)
                balanced = is_balanced(top_down, node)
                if kind_of(top_down, node) is Kind.CONV and layer is not None and not balanced:
                    assert set(layer.get("stride")) == {1}, f"{node.target} still strides"


def _add_upsample(top_down: TopDown, stage: TopDownStage, node: fx.Node, scale: Pair) -> fx.Node:
    """Insert, at the graph's insertion point, the upsampling of a map to the size of the stage's image."""
    assert stage.image is not None
    how, graph = top_down.options.upsample, stage.graph
    factor = (scale[0] // stage.scale[0], scale[1] // stage.scale[1])
    ordered = in_order(graph, node, 1)
    if how == "transposed":
        count = sum(path.startswith(f"upsample.{stage.key}.") for path in top_down.layers)
        path = f"upsample.{stage.key}.{count}"
        with META:
            top_down.layers[path] = Layer(TransposedUpsample(1, factor))
        grown = graph.call_module(path, (ordered, stage.image))
    else:
        function = upsample_nearest if how == "nearest" else upsample_bilinear
        grown = graph.call_function(function, (ordered, stage.image))
    noted(grown, Plan(growth=factor, axis=1))
    made = in_order(graph, grown, channel_axis(node))
    for step in (ordered, grown, made):
        if step is not node:
            plan(step).unit, plan(step).class_name = plan(node).unit, plan(node).class_name
    return made


def _grow_map(top_down: TopDown, stage: TopDownStage) -> None:
    """Upsample the map before anything else reads it."""
    assert stage.x is not None and stage.image is not None
    readers = list(stage.x.users)
    with stage.graph.inserting_before(stage.image.next):
        stage.arrival = _add_upsample(top_down, stage, stage.x, stage.scales[stage.x])
    stage.redirect(stage.x, stage.arrival, keep=set(stage.x.users) - set(readers))


def _grow_unit(top_down: TopDown, stage: TopDownStage, unit: Unit, small: dict[fx.Node, Pair]) -> None:
    """Insert upsampling into a unit, as late on every path as its operators allow.

    Args:
        small: what the unit reads of coarser stages, with its scale.
    """
    nodes = stage.spans[unit]
    strided = {node for node in nodes if plan(node).stride != (1, 1)}
    strided |= {n for n in nodes if any(stage.copies[unit].get(c) in strided for c in pads_for(n))}
    early = _entrances(top_down, stage, unit, strided)
    scales = dict(small)  # node that has not grown -> its scale
    grown = set(stage.inputs[unit]) - set(small)
    due = {node for node in small if not _leads_to(strided, node, nodes)}  # upsample before any extent
    span: list[fx.Node] = []
    for node in nodes:
        inputs = [n for n in node.all_input_nodes if n in grown or n in scales or n in span]
        maps = [n for n in inputs if not _is_vector(n, node)]
        extends = _has_extent(top_down, node) or is_balanced(top_down, node)
        joins = any(n in grown for n in maps) or len({scales[n] for n in maps if n in scales}) > 1
        must_grow = joins or (extends and (node in strided or node in early or any(n in due for n in maps)))
        if must_grow:
            for read in [n for n in maps if n not in grown]:
                sizes = _sizes_read(read, node) if extends else []
                first = next(n for n in stage.graph.nodes if n is node or n in sizes)
                with stage.graph.inserting_before(first):
                    copy = _add_upsample(top_down, stage, read, scales[read])
                plan(copy).unit, plan(copy).class_name = top_down.own_path(unit.path), unit.class_name
                for reader in (node, *sizes):
                    reader.replace_input_with(read, copy)
                span.append(copy)
            grown.add(node)
        elif inputs and not maps and grown.issuperset(inputs):  # a vector of a grown map, expanded to its size
            grown.add(node)
        else:
            ungrown = [scales[n] for n in maps if n in scales]
            if ungrown:
                scales[node] = ungrown[0]
            if node in strided or any(n in due for n in maps):
                due.add(node)
        span.append(node)
    last = span[-1]
    if last not in grown:
        users = list(last.users)
        with stage.graph.inserting_before(last.next):
            copy = _add_upsample(top_down, stage, last, scales[last])
        stage.redirect(last, copy, keep=set(last.users) - set(users))
        span.append(copy)
        stage.arrival = copy if stage.arrival is last else stage.arrival
    stage.spans[unit] = span


def _sizes_read(read: fx.Node, node: fx.Node) -> list[fx.Node]:
    """The sizes of a map, in running order, by which what a node moves is cropped: they grow as the map does."""
    source = plan(node).source
    if source is None or not facts(source).stays:
        return []
    sizes = {
        user for user in read.users if user is not node and plan(user).source and not facts(source_of(user)).carries
    }
    return [n for n in read.graph.nodes if n in sizes]


def _entrances(top_down: TopDown, stage: TopDownStage, unit: Unit, strided: set[fx.Node]) -> set[fx.Node]:
    """What makes a map smaller for a while, where the unit strides before it has grown again: the map grows before."""
    found: set[fx.Node] = set()
    for grown in unit.nodes:
        entrance = facts(grown).entrance
        if entrance is not None:
            between = {n for n in ancestors(grown) if entrance in ancestors(n)}
            if any(stage.copies[unit].get(n) in strided for n in between):
                found.add(stage.copies[unit][entrance])
    return found


def _return_to_size(top_down: TopDown, stage: TopDownStage, unit: Unit, node: fx.Node) -> None:
    """Let a map that was made smaller for a while grow to the very size that it had: sizes may be odd here."""
    source = plan(node).source
    entrance = facts(source).entrance if source is not None else None
    if source is None or entrance is None:
        return
    layer = top_down.bottom_up.captured.module(source)
    given = vars(layer) if isinstance(layer, nn.Upsample) else node.kwargs if node.target is F.interpolate else None
    mode = str((given or {}).get("mode", "nearest"))
    bilinear = upsample_aligned if (given or {}).get("align_corners") else upsample_bilinear
    grow = {"nearest": upsample_nearest, "bilinear": bilinear}.get(mode)
    before = stage.copies[unit][entrance].all_input_nodes[0]
    if given is None or grow is None or channel_axis(before) != 1:
        return
    unused = [n for n in node.all_input_nodes if n is not node.args[0]]
    node.op, node.target, node.args, node.kwargs = "call_function", grow, (node.args[0], before), {}
    plan(node).growth = top_down.bottom_up.growth(source)
    while unused:  # the size that it was given
        size = unused.pop()
        if not size.users and size.op != "placeholder":
            unused += size.all_input_nodes
            stage.graph.erase_node(size)


def _leads_to(strided: set[fx.Node], start: fx.Node, nodes: list[fx.Node]) -> bool:
    """Whether a strided operation reads, at whatever remove, what a unit reads."""
    reached = {start}
    for node in nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return not strided.isdisjoint(reached)


def _small_inputs(stage: TopDownStage, unit: Unit) -> dict[fx.Node, Pair]:
    """What a unit reads of coarser stages, with its scale."""
    small: dict[fx.Node, Pair] = {}
    for read in stage.inputs[unit]:
        node = read
        while node not in stage.scales and node.target == "permute" and plan(node).source is None:
            node = node.all_input_nodes[0]
        if stage.transition == "block" and node in stage.scales:
            small[read] = stage.scales[node]
    return small


def _is_vector(node: fx.Node, user: fx.Node) -> bool:
    """Whether a node is no map but a gate, or what a layer reads beside its map."""
    values = [facts(source_of(n)).value for n in (node, user) if plan(n).source is not None]
    if len(values) < 2 or not all(isinstance(value, torch.Tensor) for value in values):
        return False
    beside_a_map = user.op == "call_module" and user.args[0] is not node
    return beside_a_map or values[0].shape[-2:] == (1, 1) != values[1].shape[-2:]


def _has_extent(top_down: TopDown, node: fx.Node) -> bool:
    row, layer, source = operator_of(top_down, node), layer_of(top_down, node), plan(node).source
    if source is not None and (facts(source).stays or facts(source).pads_for):
        return True
    if row is None or row.kind is not Kind.CONV:
        return False
    return max(layer.get("kernel_size")) > 1 if layer is not None else is_spatial(top_down.bottom_up, source_of(node))
