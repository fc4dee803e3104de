"""Let numbers written into the source follow the widths: sizes of splits, bounds of slices, shapes of views."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from td_compiler.errors import ConversionError
from td_compiler.graph.axes import channel_axis
from td_compiler.graph.notes import axis_of, facts, origin_of, plan, source_of
from td_compiler.graph.states import Pass, TopDown
from td_compiler.passes.nodes import (
    channel_cut,
    channel_index,
    item_of,
    pieces_of,
    place_of,
    size_item,
    turned,
    with_size,
)

__all__ = ["RewriteSizes"]


class RewriteSizes(Pass[TopDown]):
    """A literal that counts channels is scaled as the channels of its tensor are.

    `torch.split(x, [16, 48], 1)` on 64 channels becomes `[8, 24]` on 32; `x[:, :16]` becomes `x[:, :8]`; in a `view`
    the literals between batch and pixels are scaled. Numbers computed from `x.shape` follow by themselves.
    """

    def requires(self, top_down: TopDown) -> None:
        layers = top_down.graphs()[0].find_nodes(op="call_module")
        assert all(plan(node).carries for node in layers), "SetWidths has not run"

    def apply(self, top_down: TopDown) -> None:
        for graph in top_down.graphs():
            for node in graph.nodes:
                rewrite = _REWRITES.get(getattr(node.target, "__name__", str(node.target)))
                if rewrite is not None and (plan(node).carries or plan(node).widths) and node.op.startswith("call"):
                    rewrite(node)

    def ensures(self, top_down: TopDown) -> None:
        for graph in top_down.graphs():
            graph.lint()


def _change(node: fx.Node) -> tuple[int, int] | None:
    """What a node reads: (channels in the bottom-up network, channels here); None if there is nothing to do."""
    source = plan(node).source
    before = next((n for n in source.all_input_nodes if facts(n).carries), None) if source is not None else None
    if before is None or not plan(node.all_input_nodes[0]).carries:
        return None
    old, new = facts(before).width, plan(node.all_input_nodes[0]).width
    return None if old == new else (old, new)


def _split(node: fx.Node) -> None:
    """Sizes of pieces, where the numbers given do not make those that the pieces are to have."""
    pieces = plan(node).pieces
    if pieces is None:
        return
    read, axis = node.args[0], facts(source_of(node).all_input_nodes[0]).axis
    if pieces == (_made(node, sum(pieces)) or pieces_of(node)):
        return
    node.target = "split" if node.op == "call_method" else torch.split
    node.args, node.kwargs = (read, pieces, axis), {}


def _given(node: fx.Node, at: int) -> Any:
    return node.args[at] if len(node.args) > at else next(iter(node.kwargs.values()), None)


def _made(node: fx.Node, total: int) -> list[int] | None:
    """The pieces that a split makes of `total` channels as it stands; None where its arguments are no numbers."""
    given = _given(node, 1)
    if isinstance(given, (list, tuple)):
        return list(given) if all(isinstance(n, int) for n in given) else None
    if not isinstance(given, int):
        return None
    size = -(-total // given) if _name(node) == "chunk" else given
    return [min(size, total - start) for start in range(0, total, size)]


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _slice(node: fx.Node) -> None:
    """Bounds of a slice along the channels."""
    if isinstance(order := channel_index(node), list):
        _reorder(node, order)
    bounds = plan(node).bounds
    if bounds is None:
        return
    start, stop = bounds
    cut, source = channel_cut(source_of(node)), source_of(node)
    read = source.all_input_nodes[0]
    if cut is None or (start, stop) == (cut.start, cut.stop):
        return
    axis, dims = axis_of(read), facts(read).value.dim()
    if _name(node) == "narrow":
        node.args = (node.args[0], node.args[1], start, stop - start)
        return
    index: Any = node.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    at = item_of(node, axis, dims)
    assert at is not None
    items[at] = slice(start or None, None if items[at].stop is None else stop, None)
    node.update_arg(1, tuple(items))


def _reorder(node: fx.Node, order: list[int]) -> None:
    """A list of the channels in another order."""
    width = plan(node.all_input_nodes[0]).width
    read = source_of(node).all_input_nodes[0]
    if width == facts(read).width:
        return
    new = turned(order, width)
    if new is None or len(order) != facts(read).width:
        raise ConversionError(
            f"channels are picked by their numbers among {facts(read).width} at {place_of(source_of(node))!r}, and"
            f" here there are {width}: give that map a width that stays (filters='mirror'), or pick by a slice."
        )
    index: Any = node.args[1]
    at = item_of(node, axis_of(read), facts(read).value.dim())
    assert at is not None
    node.update_arg(1, (*index[:at], new, *index[at + 1 :]))


def _pad(node: fx.Node) -> None:
    """Channels that a padding puts in front and behind."""
    pads = plan(node).pads
    if pads is not None and node.op == "call_function":
        front, behind = pads
        node.update_arg(1, [*list(node.args[1])[:-2], front, behind])  # type: ignore[arg-type]


def _zeros(node: fx.Node) -> None:
    """Channels of zeros that are made of nothing and put beside others."""
    at = size_item(node, next(channel_axis(user) for user in node.users))
    if at is not None:
        with_size(node, at, plan(node).width)


def _layer_norm(node: fx.Node) -> None:
    """The shape that a layer norm is given whose first axis is the channels'."""
    shape = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
    known = facts(source_of(node))
    if not isinstance(shape, (tuple, list)) or known.value.dim() - len(shape) != known.axis:
        return
    if shape[0] == known.width:
        if len(node.args) > 1:
            node.update_arg(1, (plan(node).width, *shape[1:]))
        else:
            node.update_kwarg("normalized_shape", (plan(node).width, *shape[1:]))


def _groups(node: fx.Node) -> None:
    """The groups of a convolution with one filter for each channel."""
    read, own = plan(node.all_input_nodes[0]).width, facts(source_of(node).all_input_nodes[0]).width
    if len(node.args) > 6 and node.args[6] == own != 1:
        node.update_arg(6, read)
    elif node.kwargs.get("groups") == own != 1:
        node.update_kwarg("groups", read)


def _view(node: fx.Node) -> None:
    """Numbers in a shape: that of the channels, or those whose product they are."""
    change, source = _change(node), source_of(node)
    if plan(node).widths:  # of a parameter
        return _view_parameter(node)
    nested = len(node.args) == 2 and isinstance(node.args[1], (list, tuple))
    given: Any = node.args[1] if nested else node.args[1:]
    dims, axis = list(given), facts(source).axis
    counts = [i for i, d in enumerate(dims) if i > 0 and isinstance(d, int) and d > 1]
    if axis in counts and dims[axis] == facts(source).width:
        dims[axis] = plan(node).width
    elif change is None or not counts:
        return
    elif math.prod(dims[i] for i in counts) == change[0]:
        largest = max(counts, key=lambda i: dims[i])
        dims[largest] = dims[largest] * change[1] // change[0]
    else:
        _regroup(dims, change[1])
    node.args = (node.args[0], dims) if nested else (node.args[0], *dims)


def _view_parameter(node: fx.Node) -> None:
    nested = len(node.args) == 2 and isinstance(node.args[1], (list, tuple))
    given: Any = node.args[1] if nested else node.args[1:]
    old = facts(source_of(node)).value.shape
    dims = [plan(node).widths.get(i, d) if d == old[i] else d for i, d in enumerate(given)]
    node.args = (node.args[0], dims) if nested else (node.args[0], *dims)


def _regroup(dims: list[Any], width: int) -> None:
    """In `x.view(n, groups, c // groups, h, w)`, groups that do not divide the new width become groups that do."""
    for share in dims:
        if not isinstance(share, fx.Node) or share.target is not operator.floordiv:
            continue
        groups: Any = origin_of(share).args[1]
        if groups in dims[1:]:
            fitting = math.gcd(groups, width)
            dims[dims.index(groups, 1)] = fitting
            share.update_arg(1, fitting)


_REWRITES = {
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "getitem": _slice,
    "narrow": _slice,
    "pad": _pad,
    "zeros": _zeros,
    "new_zeros": _zeros,
    "layer_norm": _layer_norm,
    "conv2d": _groups,
    "view": _view,
    "reshape": _view,
    "expand": _view,
}
