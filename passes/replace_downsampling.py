"""Swap strides and poolings for upsampling; keep the size of the map inside a stage (SPEC 2.4, 2.9)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler.capture.meta import META
from td_compiler.capture.places import at_line
from td_compiler.errors import ConversionError
from td_compiler.graph.axes import channel_axis, in_order
from td_compiler.graph.notes import Plan, facts, noted, plan, sides_of, source_of
from td_compiler.graph.operators import Kind, Pair, layer_row, padding_of, pair
from td_compiler.graph.states import Pass, TopDown, kind_of, layer_of, operator_of
from td_compiler.graph.units import Layer, TopDownStage, Unit
from td_compiler.graph.walks import ancestors
from td_compiler.layers.upsample import TransposedUpsample, upsample_aligned, upsample_bilinear, upsample_nearest
from td_compiler.passes.nodes import channel_padding, is_spatial, place_of
from td_compiler.passes.shifts import Sides, pixels_added
from td_compiler.passes.trace_channels import is_map

__all__ = ["ReplaceDownsampling", "amounts_for", "same_size", "write_padding"]


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
                kept = [node for node in stage.spans[unit] if not _flatten(top_down, stage, unit, node)]
                stage.spans[unit] = [each for node in kept for each in (*_pad_as_given(stage, node), node)]
                for node in stage.spans[unit]:
                    _return_to_size(top_down, stage, unit, node)

    def ensures(self, top_down: TopDown) -> None:
        for stage in top_down.stages:
            for node in stage.graph.nodes:
                layer = layer_of(top_down, node)
                balanced = _is_balanced(top_down, node)
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
    strided |= {n for n in nodes if any(stage.copies[unit].get(c) in strided for c in _pads_for(n))}
    early = _entrances(top_down, stage, unit, strided)
    scales = dict(small)  # node that has not grown -> its scale
    grown = set(stage.inputs[unit]) - set(small)
    due = {node for node in small if not _leads_to(strided, node, nodes)}  # upsample before any extent
    span: list[fx.Node] = []
    for node in nodes:
        inputs = [n for n in node.all_input_nodes if n in grown or n in scales or n in span]
        maps = [n for n in inputs if not _is_vector(n, node)]
        extends = _has_extent(top_down, node) or _is_balanced(top_down, node)
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


def _flatten(top_down: TopDown, stage: TopDownStage, unit: Unit, node: fx.Node) -> bool:
    """Make one operator keep the size of its map; True if that removed it."""
    kind, layer = kind_of(top_down, node), layer_of(top_down, node)
    source = plan(node).source
    if source is not None and (gate := facts(source).gate):
        node.op, node.target = "call_function", gate
        node.args, node.kwargs = (node.args[0], 1), {}
        return False
    if source is not None and facts(source).stays:
        _check_kernel(top_down, node)
        return False
    if source is not None and facts(source).pads_for:
        _pad_for(top_down, stage, unit, node)
        return False
    if source is not None and (padding := channel_padding(top_down.bottom_up, node)):
        _pad_channels(top_down, node, padding)
        return False
    if kind is Kind.POOL and _is_balanced(top_down, node):
        return False
    shrinks = kind is Kind.POOL and (plan(node).stride != (1, 1) or not _keeps_size(source_of(node)))
    crops = source is not None and _crops(kind, source)
    if kind is Kind.PAD or shrinks or crops:
        before = next(n for n in node.all_input_nodes if n.op != "get_attr")
        stage.redirect(node, before)
        stage.arrival = before if stage.arrival is node else stage.arrival
        stage.graph.erase_node(node)
        return True
    if kind is Kind.CONV and layer is not None and not _is_balanced(top_down, node):
        same_size(layer)
        if source is not None and facts(source).padded_by:
            layer.changes["padding"] = (0, 0)
    elif kind is Kind.CONV and layer is None and not _is_balanced(top_down, node):
        _same_size_function(top_down, node)
        if source is not None and facts(source).padded_by:
            node.kwargs = {**node.kwargs, "padding": (0, 0)}
    return False


def _check_kernel(top_down: TopDown, node: fx.Node) -> None:
    """Refuse another kernel size for a convolution whose map is cropped by as much as its own kernel needs.

    Raises:
        ConversionError: naming the convolution.
    """
    like, layer = top_down.bottom_up.layer(source_of(node)), layer_of(top_down, node)
    kernel = layer.get("kernel_size") if layer is not None else plan(node).kernel_size
    if isinstance(like, nn.Conv2d) and kernel and tuple(kernel) != like.kernel_size:
        raise ConversionError(
            f"{place_of(source_of(node))!r} pads its map, which then is cropped on one side, for a kernel of"
            f" {like.kernel_size} alone, and filters={top_down.options.filters!r} gives it one of {tuple(kernel)}: pad"
            " before it with F.pad, on one side, or convert with filters='mirror'."
        )


def _pads_for(node: fx.Node) -> tuple[fx.Node, ...]:
    source = plan(node).source
    return facts(source).pads_for if source is not None else ()


def _pad_for(top_down: TopDown, stage: TopDownStage, unit: Unit, node: fx.Node) -> None:
    """Let a padding put around a map what the convolutions that it pads for need, which then pad no more themselves.

    Raises:
        ConversionError: if they need different ones, or are in another unit.
    """
    source = source_of(node)
    copies = [stage.copies[unit].get(conv) for conv in _pads_for(node)]
    needs = {amounts_for(top_down, conv, source) for conv in copies if conv is not None}
    if None in copies or len(needs) != 1:
        raise ConversionError(
            f"what {place_of(source)!r} pads at {at_line(facts(source).place)} is read by several convolutions or"
            " stages, each of which needs another padding: pad right before each of them."
        )
    write_padding(top_down, node, needs.pop())


def amounts_for(top_down: TopDown, conv: fx.Node, padding: fx.Node) -> Sides:
    """What a bottom-up padding has to put around the map for a top-down convolution that keeps its size.

    As much on each side as its own, in proportion to the kernel, where both keep the size in the source as well; else
    as much in front as behind.
    """
    source, reading = source_of(conv), top_down.bottom_up
    added, like, layer = pixels_added(reading, padding), reading.layer(source), layer_of(top_down, conv)
    assert added is not None and isinstance(like, nn.Conv2d)
    kernel = layer.get("kernel_size") if layer is not None else plan(conv).kernel_size or like.kernel_size
    keeps = facts(source).size == facts(padding.all_input_nodes[0]).size and not any(pair(like.padding))
    found = []
    for (front, behind), dilation, k, old in zip(added, like.dilation, kernel, like.kernel_size, strict=True):
        extent = dilation * (k - 1)
        share = front / (front + behind) if keeps and front + behind == dilation * (old - 1) > 0 else 0.5
        ahead = math.floor(extent * share)
        found.append((ahead, extent - ahead))
    return found[0], found[1]


def write_padding(top_down: TopDown, node: fx.Node, amounts: Sides) -> None:
    """Make a top-down padding of pixels a function with other amounts."""
    source = source_of(node)
    mode, value = padding_of(source, top_down.bottom_up.captured.module(source))
    (above, below), (left, right) = amounts
    node.op, node.target = "call_function", F.pad
    node.args = (node.args[0], [left, right, above, below])
    node.kwargs = {"value": value} if mode == "zeros" and value else {} if mode == "zeros" else {"mode": mode}


def _pad_channels(top_down: TopDown, node: fx.Node, padding: tuple[int, int]) -> None:
    """Let a padding put in channels and nothing else."""
    source = source_of(node)
    skipped = 2 * (facts(source).value.dim() - 1 - facts(source).axis)
    given = [*[0] * skipped, *padding]
    layer = layer_of(top_down, node)
    if layer is not None:
        layer.changes["padding"] = tuple(given + [0] * (len(layer.get("padding")) - len(given)))
    else:
        node.args, node.kwargs = (
            (node.args[0], given, *node.args[2:]),
            {k: v for k, v in node.kwargs.items() if k != "pad"},
        )


def _same_size_function(top_down: TopDown, node: fx.Node) -> None:
    """The same for a convolution that is a function: stride 1, and the padding that keeps the size of its map."""
    like, names = (
        top_down.bottom_up.layer(source_of(node)),
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    )
    if not isinstance(like, nn.Conv2d):
        return
    kernel = plan(node).kernel_size or like.kernel_size
    extents = [d * (k - 1) for d, k in zip(like.dilation, kernel, strict=True)]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    padding = "same" if any(e % 2 for e in extents) else tuple(e // 2 for e in extents)
    node.args = (given.pop("input"), given.pop("weight"), given.pop("bias", None))
    node.kwargs = {**given, "stride": (1, 1), "padding": padding}


def _pad_as_given(stage: TopDownStage, node: fx.Node) -> list[fx.Node]:
    """Put the padding of a convolution that is a function, where it is not with zeros, before it: it has no mode."""
    source = plan(node).source
    mode = facts(source).padding_mode if source is not None and node.op == "call_function" else "zeros"
    amounts = node.kwargs.get("padding")
    if mode == "zeros" or not isinstance(amounts, tuple) or not any(amounts):
        return []
    height, width = amounts
    read = node.args[0]
    with stage.graph.inserting_before(node):
        padded = stage.graph.call_function(F.pad, (read, [width, width, height, height]), {"mode": mode})
    noted(padded, Plan(plan(node).unit, plan(node).class_name, axis=1))
    node.args, node.kwargs = (padded, *node.args[1:]), {**node.kwargs, "padding": (0, 0)}
    return [padded]


def _crops(kind: Kind | None, source: fx.Node) -> bool:
    """Whether a bottom-up node cuts some rows or columns off its map and does nothing else, as a shift by a pixel does.

    Stages keep their size, so there is nothing to cut off in them, unless others take the place of what is cut off.
    """
    before = next((n for n in source.all_input_nodes if facts(n).size is not None), None)
    if kind not in {None, Kind.SIZE} or source.op == "call_module" or before is None or not is_map(source):
        return False
    if any(is_map(user) and facts(user).size == facts(before).size for user in source.users):
        return False
    same = (facts(source).axis, facts(source).width) == (facts(before).axis, facts(before).width)
    sides = list(zip(sides_of(source), sides_of(before), strict=True))
    return same and all(n / 2 < left <= n for left, n in sides) and any(left < n for left, n in sides)


def _is_balanced(top_down: TopDown, node: fx.Node) -> bool:
    """Whether a node strides where its unit makes the stride good by growing again (see `find_stages`)."""
    source = plan(node).source
    if source is None or not facts(source).in_unit:
        return False
    return top_down.bottom_up.stride(source) != facts(source).stride


def _keeps_size(source: fx.Node) -> bool:
    return all(facts(n).size == facts(source).size for n in source.all_input_nodes if facts(n).carries)


def same_size(layer: Layer) -> None:
    """Give a convolution stride 1 and the padding that keeps the size of its map."""
    conv, row = layer.prototype, layer_row(layer.prototype)
    assert row is not None, f"{type(conv).__name__} is no convolution of the operator table"
    layer.changes.update(stride=(1, 1), **row.padding)
    if layer.get("padding") == "same" or _pads_itself(conv):
        return
    extents = [d * (k - 1) for d, k in zip(layer.get("dilation"), layer.get("kernel_size"), strict=True)]
    layer.changes["padding"] = "same" if any(e % 2 for e in extents) else tuple(e // 2 for e in extents)


def _pads_itself(conv: Any) -> bool:
    """Whether a convolution of the user's own pads in its forward, by its stride, as TensorFlow's "same" does."""
    if type(conv) is nn.Conv2d or max(conv.kernel_size) == 1 or conv.padding not in {(0, 0), "valid"}:
        return False
    side = 8 * max(conv.kernel_size)
    try:
        made = conv(conv.weight.new_empty(2, conv.in_channels, side, side))
    except Exception:  # whatever it needs, it is no plain convolution: treat it as one that does not pad
        return False
    return bool(made.shape[-1] == -(-side // conv.stride[1]))
