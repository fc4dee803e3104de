"""Note on every node where its channels are, how many, and how large its map is (SPEC 1.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx, nn

from td_compiler.errors import ConversionError
from td_compiler.graph.moves import inserted, is_reduction, moved, permutation, reduces
from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind
from td_compiler.graph.states import Pass, Reading
from td_compiler.passes.nodes import place_of, tensors

__all__ = ["TraceChannels", "is_map"]


class TraceChannels(Pass[Reading]):
    """Finds `axis`, `width`, `size`, `seen` and `factor` of what carries image data, behind the prologue.

    `axis` is where the channels are, None where a reshape has folded or split them; `width` is how many there are, of a
    folded tensor as many as went in. `size` is (height, width) of a map, None of anything else; `seen` is that of the
    last map on the way. `factor` is how much smaller than the last map a node makes its own, where the operator table
    does not say (a strided slice, a space to depth, a pooling of the user's own).
    """

    def requires(self, reading: Reading) -> None:
        assert "FindPrologue" in reading.done, "FindPrologue has not run"

    def apply(self, reading: Reading) -> None:
        for node in reading.captured.graph.nodes:
            source = _first_map(node)
            if node is reading.image:
                size = tuple(facts(node).value.shape[2:])
                known = facts(node)
                known.axis, known.width, known.size, known.seen = 1, known.value.shape[1], size, size
            elif source is not None and tensors(facts(node).value):
                _check(reading, node, source)
                _follow(reading, node, source)

    def ensures(self, reading: Reading) -> None:
        assert facts(reading.captured.output).carries, "the class scores do not come from the image"


def _check(reading: Reading, node: fx.Node, source: fx.Node) -> None:
    """Refuse an operation on a map that the table knows to have no counterpart, or with weights that nobody knows.

    Raises:
        ConversionError: naming it, with the reason.
    """
    row, module = reading.row(node), reading.captured.module(node)
    along_channels = row is not None and row.kind is Kind.ALONG_CHANNELS
    if facts(source).size in {None, (1, 1)} and not along_channels:
        return
    what = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
    if reason := row.refuse(node, module) if row is not None else "":
        raise ConversionError(f"{what} at {place_of(node)!r} {reason}.")
    if row is not None and row.kind is Kind.CONV and _convolves_pixels(source):
        raise ConversionError(
            f"{what} at {place_of(node)!r} has one filter for every row or column of a map, as if they were channels:"
            " maps have other sizes in the top-down network; run it over the channels."
        )
    if row is None and _has_weights(node, module) and _factor(facts(source).size, _sides(node)) != (1, 1):
        raise ConversionError(
            f"{what} at {place_of(node)!r} makes its map smaller and has weights, and no rule says how its channels"
            " flow: say it with td_compiler.register (docs/adding-an-operator.md)."
        )


def _convolves_pixels(read: fx.Node) -> bool:
    """Whether what a convolution takes for channels are all rows or columns of a map, turned there."""
    value, seen = facts(read).value, facts(read).seen
    turned = facts(read).axis in {2, 3} and isinstance(value, torch.Tensor) and value.dim() == 4
    return turned and seen is not None and value.shape[1] in seen and value.shape[1] > 2


def _has_weights(node: fx.Node, module: nn.Module | None) -> bool:
    read = (facts(n).value for n in node.all_input_nodes if n.op == "get_attr")
    held = module.parameters() if module is not None else ()
    return any(isinstance(value, nn.Parameter) and value.dim() > 1 for value in (*read, *held))


def _sides(node: fx.Node) -> tuple[int, ...] | None:
    value = tensors(facts(node).value)[0]
    return tuple(value.shape[2:]) if value.dim() == 4 else None


# What makes a map (N, C, H, W) of a tensor with more or fewer axes.
_UNFOLDING = {"view", "reshape", "flatten", "unflatten", "squeeze", "sum", "mean", "getitem", "unbind"}


def is_map(node: fx.Node) -> bool:
    """Whether a node carries a map (N, C, H, W), or the like in another order; several in a tuple are none."""
    return facts(node).size is not None and isinstance(facts(node).value, torch.Tensor)


def _first_map(node: fx.Node) -> fx.Node | None:
    """The input that a node's channels are told by: the largest of those that carry image data."""
    inputs = [n for n in node.all_input_nodes if facts(n).carries]
    return max(inputs, key=lambda n: tensors(facts(n).value)[0].numel(), default=None)


def _follow(reading: Reading, node: fx.Node, source: fx.Node) -> None:
    known, value, before = facts(node), tensors(facts(node).value)[0], tensors(facts(source).value)[0]
    axis = _axis(reading, node, source, value, before) or None  # axis 0 is the batch: channels folded into it
    known.axis = axis
    row = reading.row(node)
    if axis is not None:
        known.width = int(value.shape[axis])
    elif row is not None and row.kind is Kind.LINEAR:
        known.width = int(value.shape[-1])
    elif _takes_one(node, source, before, value):
        known.width = 1
    else:
        known.width = facts(source).width
    if value.dim() == 4 and axis is not None:
        height, across = (n for i, n in enumerate(value.shape) if i not in (0, axis))
        known.size = height, across
    seen = facts(source).size or facts(source).seen
    known.seen = known.size or seen
    factor = (1, 1) if reading.is_strip(known.size) or reading.is_strip(seen) else _factor(seen, known.size)
    is_known = row is not None and row.kind in {Kind.CONV, Kind.POOL, Kind.GLOBAL_POOL, Kind.PAD}
    if factor != (1, 1) and known.factor is None and not is_known:  # capture knows that of a pooling of the user's own
        known.factor = factor


def _takes_one(node: fx.Node, source: fx.Node, before: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a node leaves one number of all channels, and no axis for it."""
    axis = facts(source).axis
    picks = isinstance(facts(source).value, torch.Tensor) or is_reduction(node)
    return axis is not None and picks and reduces(node, axis, before.shape, value.shape)


def _axis(reading: Reading, node: fx.Node, source: fx.Node, value: torch.Tensor, before: torch.Tensor) -> int | None:
    axis: int | None = facts(source).axis
    row = reading.row(node)
    if row is not None and row.kind is Kind.LINEAR:
        return value.dim() - 1
    if row is not None and row.kind is Kind.CONV:
        return 1
    if axis is None and facts(source).width == 1:  # one number stood for all channels: the new axis is theirs
        return next(iter(inserted(node, before.dim())), None) if value.dim() == 4 else None
    order = permutation(node, before.dim())
    if order is not None:
        return order.index(axis) if axis is not None else None
    if isinstance(facts(source).value, torch.Tensor) and axis is not None and value.dim() <= 4:
        if reduces(node, axis, before.shape, value.shape) and value.dim() < before.dim():
            return None
        place = moved(node, axis, before.shape, value.shape)
        if place is not None:
            return place
    if value.dim() == 4 and before.dim() == 4:
        return _reshaped(node, axis, value, before)
    if value.dim() == 2:
        return 1
    if value.dim() == 3 and axis == 1 and value.shape[1] == before.shape[1]:
        return 1
    if value.dim() == 4 and getattr(node.target, "__name__", node.target) in _UNFOLDING:
        return 1
    return None


def _reshaped(node: fx.Node, axis: int | None, value: torch.Tensor, before: torch.Tensor) -> int | None:
    """The axis of the channels where four axes become four: groups of them are none, pixels stay where they are."""
    if getattr(node.target, "__name__", node.target) not in {"view", "reshape"}:
        return axis
    if axis is None:
        return 1 if value.shape[1:].numel() == value.shape[1] else None
    return axis if value.shape[2:] == before.shape[2:] or value.shape[1:].numel() == value.shape[1] else None


def _factor(before: Sequence[int] | None, after: Sequence[int] | None) -> tuple[int, int]:
    """How much smaller a map became, rounded: 7 to 4 is 2, 'valid' 13 to 6 is 2; a map of one pixel is a vector.

    As many pixels in other rows, as attention pooling reads them, are not fewer.
    """
    if before is None or after is None or tuple(after) == (1, 1) or math.prod(before) == math.prod(after):
        return 1, 1
    down, across = (max(1, round(b / a)) for b, a in zip(before, after, strict=True))
    return down, across
