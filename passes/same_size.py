"""Inside a stage every operator keeps the size of its map: strides go, 'valid' becomes 'same' (SPEC 2.4)."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from td_compiler.capture.places import at_line
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import Pair, Plan, facts, noted, plan, sides_of, source_of
from td_compiler.graph.operators import Kind, layer_row, padding_of, pair, pool_extent
from td_compiler.graph.states import TopDown, kind_of, layer_of, operator_of
from td_compiler.graph.units import Layer, TopDownStage, Unit
from td_compiler.passes.nodes import channel_padding, place_of
from td_compiler.passes.shifts import Sides, pixels_added, strides_next
from td_compiler.passes.trace_channels import is_map

__all__ = ["amounts_for", "is_balanced", "keep_size", "pads_for", "same_size", "with_padding", "write_padding"]


def keep_size(top_down: TopDown, stage: TopDownStage, unit: Unit, node: fx.Node) -> bool:
    """Make one operator keep the size of its map; True if that removed it."""
    kind, layer = kind_of(top_down, node), layer_of(top_down, node)
    source = plan(node).source
    if source is not None and (gate := facts(source).gate):
        if gate.pooling is not None:
            node.op, node.target = "call_function", gate.pooling
            node.args, node.kwargs = (node.args[0], 1 if gate.sides == (1, 1) else gate.sides), {}
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
    if kind is Kind.POOL and is_balanced(top_down, node):
        return False
    strides = kind is Kind.POOL and plan(node).stride != (1, 1)
    crops = source is not None and _crops(kind, source)
    if crops:
        _check_neighbours(top_down, source_of(node))
    if kind is Kind.PAD or strides or crops:
        before = next(n for n in node.all_input_nodes if n.op != "get_attr")
        stage.redirect(node, before)
        stage.arrival = before if stage.arrival is node else stage.arrival
        stage.graph.erase_node(node)
        return True
    _check_size(top_down, node)
    if kind is Kind.CONV and layer is not None and not is_balanced(top_down, node):
        same_size(layer)
        if source is not None and facts(source).padded_by:
            layer.changes["padding"] = (0, 0)
    elif kind is Kind.CONV and layer is None and not is_balanced(top_down, node):
        _same_size_function(top_down, node)
        if source is not None and facts(source).padded_by:
            node.kwargs = {**node.kwargs, "padding": (0, 0)}
    return False


def _check_neighbours(top_down: TopDown, crop: fx.Node) -> None:
    """Refuse a map that meets itself moved, by two crops on different sides: without them it would meet itself.

    Where a stride follows at once they chose between its pixels, which the top-down network does not.

    Raises:
        ConversionError: naming the place.
    """
    reading = top_down.bottom_up
    cut, read = pixels_added(reading, crop), crop.all_input_nodes[0]
    others = [n for n in read.users if n is not crop and facts(n).size == facts(crop).size and is_map(n)]
    cuts = [pixels_added(reading, other) for other in others]
    if all(other is None or other == cut for other in cuts) or strides_next(reading, crop):
        return
    raise ConversionError(
        f"at {at_line(facts(crop).place)} {place_of(crop)!r} crops its map by different sides, so that neighbours meet,"
        " and inside a stage maps keep their size: pad it before by as many pixels (F.pad), so that it has its size"
        " again."
    )


def _check_size(top_down: TopDown, node: fx.Node) -> None:
    """Refuse what takes a border off its map in a way that the operator table does not know.

    Raises:
        ConversionError: naming its place.
    """
    source = plan(node).source
    if source is None or kind_of(top_down, node) not in {None, Kind.SIZE}:
        return
    read = source.all_input_nodes
    if not any(is_map(n) for n in read):  # one of several tensors: of what gave them
        read = [*read, *(before for n in read for before in n.all_input_nodes)]
    cut = next((size for n in read if (size := _cut_from(top_down, n, source)) is not None), None)
    if cut is None:
        return
    sizes = ["x".join(map(str, size)) for size in (cut, sides_of(source))]
    raise ConversionError(
        f"{place_of(source)!r} makes its map smaller without a stride, from {sizes[0]} to {sizes[1]}, at"
        f" {at_line(facts(source).place)}, and inside a stage maps keep their size: pad its map before it, or write it"
        " as a convolution or pooling of torch."
    )


def _cut_from(top_down: TopDown, read: fx.Node, source: fx.Node) -> Pair | None:
    """(height, width) of a map that a bottom-up node reads, where that node leaves all of it but a border.

    Numbers for a gate are no map: one of a whole map, or a line of them, of its rows or columns.
    """
    before, after = facts(read).seen, facts(source).size
    summaries = any(size == (1, 1) or top_down.bottom_up.is_strip(size) for size in (before, after))
    if before is None or after is None or summaries or not is_map(source):
        return None
    sides = list(zip(before, after, strict=True))
    return before if all(n / 2 < left <= n for n, left in sides) and before != after else None


def _check_kernel(top_down: TopDown, node: fx.Node) -> None:
    """Refuse another kernel size for a convolution whose map is cropped by as much as its own kernel needs.

    Raises:
        ConversionError: naming the convolution.
    """
    like, layer = top_down.bottom_up.layer(source_of(node)), layer_of(top_down, node)
    if not isinstance(like, nn.Conv2d):
        return
    kernel = layer.get("kernel_size") if layer is not None else plan(node).kernel_size
    if kernel and tuple(kernel) != like.kernel_size:
        raise ConversionError(
            f"{place_of(source_of(node))!r} pads its map, which then is cropped on one side, for a kernel of"
            f" {like.kernel_size} alone, and filters={top_down.options.filters!r} gives it one of {tuple(kernel)}: pad"
            " before it with F.pad, on one side, or convert with filters='mirror'."
        )


def pads_for(node: fx.Node) -> tuple[fx.Node, ...]:
    source = plan(node).source
    return facts(source).pads_for if source is not None else ()


def _pad_for(top_down: TopDown, stage: TopDownStage, unit: Unit, node: fx.Node) -> None:
    """Let a padding put around a map what the convolutions that it pads for need, which then pad no more themselves.

    Raises:
        ConversionError: if they need different ones, or are in another unit.
    """
    source = source_of(node)
    copies = [stage.copies[unit].get(conv) for conv in pads_for(node)]
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
    node.op, node.target, node.args = "call_function", F.pad, (node.args[0], _as_pad(amounts))
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


def with_padding(top_down: TopDown, stage: TopDownStage, node: fx.Node) -> list[fx.Node]:
    """A node between what pads the map that it reads and what crops the one that it makes, where it does not itself."""
    if kind_of(top_down, node) is Kind.POOL:
        return _pooling_with_padding(top_down, stage, node)
    source = plan(node).source
    mode = facts(source).padding_mode if source is not None and node.op == "call_function" else "zeros"
    amounts = node.kwargs.get("padding")
    if mode == "zeros" or not isinstance(amounts, tuple) or not any(amounts):
        return [node]
    height, width = amounts
    padded = _padded(stage, node, ((height, height), (width, width)), mode)
    node.kwargs = {**node.kwargs, "padding": (0, 0)}
    return [padded, node]


def _pooling_with_padding(top_down: TopDown, stage: TopDownStage, node: fx.Node) -> list[fx.Node]:
    """A pooling without stride that makes its map smaller or larger in the source, as if it were a 'same' one.

    Beyond the border it sees the pixels at the border again: a maximum stays one of the window's, a mean one of them.
    """
    source, row, reading = plan(node).source, operator_of(top_down, node), top_down.bottom_up
    if source is None or row is None or facts(source).stays or is_balanced(top_down, node) or _keeps_size(source):
        return [node]
    if facts(source).gate is not None:
        return [node]
    extent, padding = pool_extent(source, reading.captured.module(source))
    (above, below), (left, right) = ((e // 2 - p, e - e // 2 - p) for e, p in zip(extent, padding, strict=True))
    put: Sides = (max(above, 0), max(below, 0)), (max(left, 0), max(right, 0))
    cut: Sides = (min(above, 0), min(below, 0)), (min(left, 0), min(right, 0))
    steps = [node]
    if any(map(any, put)):
        steps.insert(0, _padded(stage, node, put, row.border))
    if any(map(any, cut)):
        with stage.graph.inserting_after(node):
            cropped = stage.graph.call_function(F.pad, (node, _as_pad(cut)))
        noted(cropped, Plan(plan(node).unit, plan(node).class_name, axis=1))
        stage.redirect(node, cropped, keep={cropped})
        stage.arrival = cropped if stage.arrival is node else stage.arrival
        steps.append(cropped)
    return steps


def _padded(stage: TopDownStage, node: fx.Node, amounts: Sides, mode: str) -> fx.Node:
    """Pad the map that a node reads first."""
    with stage.graph.inserting_before(node):
        how: dict[str, Any] = {} if mode == "constant" else {"mode": mode}
        padded = stage.graph.call_function(F.pad, (node.args[0], _as_pad(amounts)), how)
    noted(padded, Plan(plan(node).unit, plan(node).class_name, axis=1))
    node.args = (padded, *node.args[1:])
    return padded


def _as_pad(amounts: Sides) -> list[int]:
    """Pixels on every side in the order of `F.pad`."""
    (above, below), (left, right) = amounts
    return [left, right, above, below]


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


def is_balanced(top_down: TopDown, node: fx.Node) -> bool:
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
