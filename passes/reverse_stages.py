"""Put the stages into top-down order, each with a graph of its own (SPEC 2.3, 2.6, 2.7)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import fx

from td_compiler.graph.axes import in_order
from td_compiler.graph.notes import Plan, facts, noted, plan, sides_of
from td_compiler.graph.operators import Kind, Pair
from td_compiler.graph.states import BottomUp, TopDown
from td_compiler.graph.units import Layer, TopDownStage, Unit
from td_compiler.options import Options
from td_compiler.passes.branches import takes_any_width
from td_compiler.passes.find_units import pools_all
from td_compiler.passes.trace_channels import is_map

__all__ = ["copy_unit", "reverse_stages"]


def reverse_stages(bottom_up: BottomUp, options: Options) -> TopDown:
    """The stages coarse to fine with the bodies copied in, the prologue and the head: the network before it is changed.

    Under `mirror` and `uniform` every scale keeps its own body; under `reversed` the bodies run in bottom-up order.
    Under `stem="trailing"` the scales without a body, left by the stem, come last; under "leading" they come first.
    """
    stages = _plan(bottom_up, options)
    top_down = TopDown(bottom_up=bottom_up, options=options, stages=stages, notes=list(bottom_up.notes))
    top_down.prologue_graph = _copy_prologue(top_down)
    scales: list[Pair] = []
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        scales = _copy_body(top_down, stage, scales, 1 + (following is not None and _reads_two(stage, following)))
    _copy_head(top_down)
    _ensures(top_down)
    return top_down


def _ensures(top_down: TopDown) -> None:
    stages = top_down.stages
    assert stages[-1].scale == (1, 1), "the last stage must run at the image's resolution"
    assert len({stage.scale for stage in stages}) == len(stages), "two stages share a scale"
    assert sum(len(s.units) for s in stages) == sum(len(s.units) for s in top_down.bottom_up.stages)


def _copy_prologue(top_down: TopDown) -> fx.Graph | None:
    """The prologue's graph, if there is a prologue: nothing in it changes, whatever the arrangement (SPEC 1.0)."""
    if not top_down.bottom_up.prologue:
        return None
    graph = fx.Graph()
    copies = {top_down.bottom_up.captured.image: graph.placeholder("images")}
    for node in top_down.bottom_up.prologue:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        _register(top_down, node, copies[node])
    for source, copy in copies.items():
        noted(copy, Plan(source=source))
        value = facts(source).value
        if source.op != "get_attr" and isinstance(value, torch.Tensor) and value.dim() > 1:
            plan(copy).width = value.shape[1]
    graph.output(copies[top_down.bottom_up.image])
    steps = [node for node in top_down.bottom_up.prologue if facts(node).prologue]
    names = ", ".join(str(getattr(node.target, "__name__", node.target)) for node in steps)
    top_down.notes.append(f"What is done to the image before the first layer ({names}) is done before the pyramid.")
    return graph


def _plan(found: BottomUp, options: Options) -> list[TopDownStage]:
    stems, body = found.stages[: found.stem_boundaries], found.stages[found.stem_boundaries :]
    stem_boundaries, boundaries = found.boundaries[: len(stems)], found.boundaries[len(stems) :]
    if options.stem == "leading":
        natives = [*reversed(stems), *reversed(body)]
        between = [*reversed(stem_boundaries), *reversed(boundaries)]
    else:
        natives = [*reversed(body), *reversed(stems)]
        between = [*reversed(boundaries), *reversed(stem_boundaries)]
    bodies = [stage.units for stage in natives]
    if options.filters == "reversed":
        filled = iter([stage.units for stage in body if stage.units])
        bodies = [next(filled) if units else [] for units in bodies]
    stages: list[TopDownStage] = []
    scale: Pair = found.stages[-1].scale
    for i, (native, units) in enumerate(zip(natives, bodies, strict=True)):
        if i:
            scale = (scale[0] // between[i - 1].factor[0], scale[1] // between[i - 1].factor[1])
        started = any(stage.units for stage in stages)
        by_block = i > 0 and between[i - 1].strided and units and started and takes_any_width(found, units[0])
        transition = "none" if i == 0 else "block" if by_block else "plain"
        stages.append(TopDownStage(scale, transition, units, native, between[i - 1].between if i else []))  # type: ignore[arg-type]
    return stages


def _reads_two(stage: TopDownStage, following: TopDownStage) -> bool:
    """Whether the first unit of a stage reads the last two outputs of the stage before it (SPEC 2.13).

    A plain transition hands on one map, and what comes from a stage without cells is one map as well.
    """
    return bool(stage.units) and following.transition == "block" and len(following.units[0].inputs) > 1


def _copy_body(top_down: TopDown, stage: TopDownStage, scales: list[Pair], count: int) -> list[Pair]:
    """Fill a stage's graph: the maps so far, the units in order, the output.

    Args:
        scales: of the maps that arrive, newest first.
        count: how many maps the stage hands on.

    Returns:
        The scales of the maps that the stage hands on, newest first.
    """
    graph = stage.graph
    for scale, name in zip(scales, ("x", "older"), strict=False):
        node = graph.placeholder(name)
        noted(node, Plan())
        stage.scales[node] = scale
        stage.x, stage.older = (node, None) if name == "x" else (stage.x, node)
    stage.image = graph.placeholder("image")
    arriving = stage.arriving or (stage.image,)
    current = arriving[0]
    first = stage.units[0].inputs if stage.units else ()
    # What the units read of other stages: the outputs before theirs, whichever stage these are of now.
    made = {node: arriving[min(i, len(arriving) - 1)] for i, node in enumerate(first)}
    for i, unit in enumerate(stage.units):
        current = copy_unit(top_down, stage, unit, *(made.get(node, current) for node in unit.inputs))
        if i == 0 and stage.transition == "block":
            current = in_order(graph, current, 1)  # the merge will stand here
            stage.arrival = current
        made[unit.output] = current
    handed_on = [current]
    if count > 1:
        last = stage.units[-1]
        handed_on.append(made[last.state[1] if len(last.state) > 1 else last.input])
    outputs = [in_order(graph, node, 1) for node in handed_on]
    graph.output(outputs[0] if count == 1 else tuple(outputs))
    grown = stage.transition == "plain"  # then what arrives is grown before anything reads it
    return [stage.scale if grown else stage.scales.get(node, stage.scale) for node in handed_on]


def copy_unit(top_down: TopDown, stage: TopDownStage, unit: Unit, *values: fx.Node) -> fx.Node:
    """Copy a unit's nodes to the end of a stage's graph, reading `values`; returns the copy of its output."""
    read = tuple(in_order(stage.graph, n, facts(own).axis) for n, own in zip(values, unit.inputs, strict=True))
    copies = stage.copies[unit] = dict(zip(unit.inputs, read, strict=True))
    stage.spans[unit] = []
    stage.inputs[unit] = read
    for node in unit.nodes:
        copy = stage.graph.node_copy(node, lambda n, copies=copies: _copied(top_down, stage.graph, copies, n))  # type: ignore[misc]
        known = facts(node)
        path = top_down.own_path(unit.path)
        noted(copy, Plan(path, unit.class_name, node, stride=known.stride, opaque=known.opaque))
        copies[node] = copy
        stage.spans[unit].append(copy)
        _register(top_down, node, copy)
    return copies[unit.output]


def _copied(top_down: TopDown, graph: fx.Graph, copies: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    """The copy of a node; what is no map (a size, a parameter) is copied when it is first asked for.

    What a unit or the head reads of the prologue is a size, of which the map that it reads has the like.
    """
    if node not in copies and facts(node).prologue:
        return next(iter(copies.values()))
    if node not in copies:
        copy = graph.node_copy(node, lambda n: _copied(top_down, graph, copies, n))
        _register(top_down, node, copy)
        noted(copy, Plan(source=node, opaque=facts(node).opaque))
        copies[node] = copy
    return copies[node]


def _register(top_down: TopDown, node: fx.Node, copy: fx.Node) -> None:
    """Give what a copy calls or reads its path in the top-down network; a layer is listed there."""
    if node.op in ("call_module", "get_attr"):
        copy.target = top_down.own_path(str(node.target))
    module = top_down.bottom_up.captured.module(node)
    if module is not None:
        top_down.layers.setdefault(str(copy.target), Layer(module, source=str(node.target), own=True))


def _copy_head(top_down: TopDown) -> None:
    """Fill the head's graph. Reshapes to (N, features) become `flatten`; a pooling to one pixel becomes a global one.

    Before a reshape that counts the map's pixels the map is averaged to the size that it has in the bottom-up network;
    with `head="pooled"` before whatever the head begins with, but a pooling (SPEC 2.12).
    """
    head, graph = top_down.bottom_up.head, top_down.head_graph
    x = graph.placeholder("x")
    noted(x, Plan())
    features = top_down.bottom_up.features
    copies = {features: in_order(graph, x, facts(features).axis)}
    pooled: set[fx.Node] = set()  # maps whose size does not follow the image's
    if top_down.options.head == "pooled" and _works_before_pooling(top_down):
        copies[features] = _average(top_down, graph, copies[features], features, "head='pooled': the last map")
        pooled.add(features)
    for node in head:
        kind, maps = top_down.bottom_up.kind(node), [n for n in node.all_input_nodes if is_map(n)]
        if kind is Kind.GLOBAL_POOL or pools_all(top_down.bottom_up, node) or (maps and pooled.issuperset(maps)):
            pooled.add(node)
        elif maps and _counts_pixels(top_down, node):
            copies[maps[0]] = _average(top_down, graph, copies[maps[0]], maps[0], "The head flattens its map: it")
            pooled.add(maps[0])
        if kind is Kind.FLATTEN and facts(node).value.dim() == 2:
            copy = graph.call_function(torch.flatten, (copies[node.all_input_nodes[0]], 1))
        elif pooling := pools_all(top_down.bottom_up, node):
            copy = graph.call_function(pooling, (copies[node.all_input_nodes[0]], 1))
        else:
            copy = graph.node_copy(node, lambda n, copies=copies: _copied(top_down, graph, copies, n))  # type: ignore[misc]
            _register(top_down, node, copy)
        noted(copy, Plan(source=node, opaque=facts(node).opaque))
        copies[node] = copy
    graph.output(copies[head[-1] if head else features])


def _counts_pixels(top_down: TopDown, node: fx.Node) -> bool:
    """Whether what a head makes of a map is for the map's size alone: one feature for every pixel, or its one pixel."""
    before = next(n for n in node.all_input_nodes if is_map(n))
    value = facts(node).value
    if not isinstance(value, torch.Tensor) or is_map(node):
        return False
    reshapes = top_down.bottom_up.kind(node) in {Kind.FLATTEN, Kind.SIZE}
    if facts(before).size == (1, 1):
        return reshapes
    pixels = math.prod(sides_of(before))
    mixes = any(top_down.bottom_up.kind(user) is Kind.LINEAR for user in node.users)
    return reshapes and (value.dim() == 2 or (mixes and value.shape[-1] == pixels))


def _works_before_pooling(top_down: TopDown) -> bool:
    """Whether a head begins with layers that compute something of every pixel of a map."""
    bottom_up = top_down.bottom_up
    if top_down.options.task != "classification" or not is_map(bottom_up.features):
        return False
    works = {Kind.CONV, Kind.LINEAR, Kind.NORM, Kind.ACTIVATION}
    reached = {bottom_up.features}
    for node in bottom_up.head:
        kind = bottom_up.kind(node)
        if not reached.intersection(node.all_input_nodes) or kind is Kind.GLOBAL_POOL or pools_all(bottom_up, node):
            continue
        if kind in works:
            return True
        reached.add(node)
    return False


def _average(top_down: TopDown, graph: fx.Graph, copy: fx.Node, source: fx.Node, what: str) -> fx.Node:
    """Average a map of the head to the size that it has in the bottom-up network; `what` it is, for the report."""
    size = sides_of(source)
    made = graph.call_function(F.adaptive_avg_pool2d, (in_order(graph, copy, 1), size))
    noted(made, Plan(axis=1))
    top_down.notes.append(f"{what} is averaged to {size[0]}x{size[1]} before, the size that it has in the source.")
    return in_order(graph, made, facts(source).axis)
