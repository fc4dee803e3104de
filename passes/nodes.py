"""What a node of a graph reads: its arguments, parameters, channels; what its layer is; what users call its place."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from td_compiler.graph.moves import moved
from td_compiler.graph.notes import facts, origin_of, source_of, value_of
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import Reading

__all__ = [
    "SPLITS",
    "Cut",
    "channel_cut",
    "channel_index",
    "channel_padding",
    "is_depthwise",
    "is_parameter",
    "is_spatial",
    "item_of",
    "kernel_parameter",
    "module_path",
    "padding_of",
    "parameters_behind",
    "pieces_of",
    "place_of",
    "runs_along_channels",
    "size_item",
    "tensors",
    "turned",
    "widened",
    "with_size",
    "zero_channels",
]

SPLITS = {"split", "split_with_sizes", "chunk"}  # what divides a map by numbers that can be written anew


def is_parameter(node: fx.Node) -> bool:
    return node.op == "get_attr" and isinstance(facts(node).value, torch.Tensor)


def parameters_behind(node: fx.Node, axis: int) -> list[tuple[fx.Node, int]]:
    """The parameters that a top-down node is made of, as `self.weight.view(1, -1, 1, 1)` is, with their own axes.

    Only those that have an axis which becomes the node's `axis`. What is made of them on the way is among them.
    """
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        return []
    if node.op == "get_attr":
        return [(node, axis)]
    source = origin_of(node)
    found = [(node, axis)]
    for before in node.all_input_nodes:
        shape = getattr(value_of(before), "shape", ())
        for own, n in enumerate(shape):
            if n == value.shape[axis] and moved(source, own, shape, value.shape) == axis:
                found += parameters_behind(before, own)
                break
    return found


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one filter per input channel, so that it sets no width of its own."""
    groups, inputs = getattr(module, "groups", 1), getattr(module, "in_channels", 0)
    return bool(groups == inputs > 1)


def kernel_parameter(node: fx.Node) -> fx.Node | None:
    """The parameter that a convolution, a function, takes for its kernel as it stands; None where it is computed."""
    given = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
    return given if isinstance(given, fx.Node) and given.op == "get_attr" else None


def is_spatial(reading: Reading, node: fx.Node) -> bool:
    """Whether a bottom-up node is a convolution that sees more than one pixel."""
    module = reading.layer(node)
    return reading.kind(node) is Kind.CONV and max(getattr(module, "kernel_size", (1,))) > 1


def runs_along_channels(reading: Reading, node: fx.Node) -> bool:
    """Whether a bottom-up node is a convolution over the channels of a vector, which are as many behind it."""
    return reading.kind(node) is Kind.ALONG_CHANNELS and facts(node.all_input_nodes[0]).axis != 1


@dataclass(frozen=True)
class Cut:
    """The channels from `start` to before `stop` of the bottom-up network."""

    start: int
    stop: int


def channel_cut(source: fx.Node) -> Cut | None:
    """The channels that a bottom-up node takes of the map that it reads, as `x[:, :16]` does; None for other nodes."""
    if not source.all_input_nodes:
        return None
    read = source.all_input_nodes[0]
    axis, value = facts(read).axis, facts(read).value
    if axis is None or not isinstance(value, torch.Tensor):
        return None
    if getattr(source.target, "__name__", source.target) == "narrow":
        dim, start, length = (_number(a) for a in source.args[1:4])
        return Cut(start, start + length) if dim % value.dim() == axis else None
    taken = _item(source, axis, value.dim()) if source.target is operator.getitem else None
    if not isinstance(taken, slice) or taken.step not in {None, 1}:
        return None
    start, stop, _ = slice(_number(taken.start), _number(taken.stop)).indices(value.shape[axis])
    return Cut(start, stop)


def channel_index(node: fx.Node) -> fx.Node | list[int] | None:
    """The channel numbers by which a top-down node picks channels, as `x[:, self.order]` does."""
    source = source_of(node)
    read = source.all_input_nodes[0] if source.all_input_nodes else None
    axis, value = (facts(read).axis, facts(read).value) if read is not None else (None, None)
    if axis is None or not isinstance(value, torch.Tensor):
        return None
    if getattr(node.target, "__name__", node.target) == "index_select":
        dim = source.kwargs.get("dim", source.args[1] if len(source.args) > 1 else 0)
        given = node.kwargs.get("index", node.args[-1])
        return given if isinstance(given, fx.Node) and _number(dim) % value.dim() == axis else None
    if node.target is not operator.getitem:
        return None
    given = _item(node, axis, value.dim())
    if isinstance(given, list) and all(isinstance(n, int) for n in given):
        return given
    return given if isinstance(given, fx.Node) and isinstance(value_of(given), torch.Tensor) else None


def turned(order: list[int], width: int) -> list[int] | None:
    """A permutation like the given one, of another number of channels; None if that is no permutation."""
    old = len(order)
    if sorted(order) != list(range(old)):
        return None
    turns = [n + old * turn for turn in range(-(-width // old)) for n in order]
    return [n for n in turns if n < width]


def _item(node: fx.Node, axis: int, dims: int) -> Any:
    """What an index says of one axis."""
    at = item_of(node, axis, dims)
    given: Any = node.args[1]
    return None if at is None else given[at] if isinstance(given, tuple) else given


def item_of(node: fx.Node, axis: int, dims: int) -> int | None:
    """Which item of an index is for an axis; None if none is."""
    given: Any = node.args[1]
    items = given if isinstance(given, tuple) else (given,)
    reads = sum(item is not None and item is not Ellipsis for item in items)
    place = 0
    for i, item in enumerate(items):
        if item is Ellipsis:
            place += dims - reads
        elif item is not None:
            if place == axis:
                return i
            place += 1
    return None


def _number(value: Any) -> Any:
    return facts(value).value if isinstance(value, fx.Node) else value


def pieces_of(node: fx.Node) -> list[int] | None:
    """The channels of the maps into which a top-down node divides its input, in the bottom-up network."""
    source = source_of(node)
    made, read = facts(source).value, source.all_input_nodes[0]
    axis, value = facts(read).axis, facts(read).value
    if not isinstance(made, (tuple, list)) or axis is None or not isinstance(value, torch.Tensor):
        return None
    if not all(isinstance(piece, torch.Tensor) and piece.dim() == value.dim() for piece in made):
        return None
    sizes = [int(piece.shape[axis]) for piece in made]
    return sizes if sum(sizes) == value.shape[axis] and len(sizes) > 1 else None


def channel_padding(reading: Reading, node: fx.Node) -> tuple[int, int] | None:
    """How many channels a top-down node puts in front of and behind those that it reads; None if none."""
    source = source_of(node)
    if reading.kind(source) is not Kind.PAD:
        return None
    axis, dims = facts(source.all_input_nodes[0]).axis, facts(source).value.dim()
    amounts, at = padding_of(reading, source), 2 * (dims - 1 - axis) if axis is not None else 0
    if axis is None or len(amounts) < at + 2 or amounts[at] == amounts[at + 1] == 0:
        return None
    return amounts[at], amounts[at + 1]


def zero_channels(node: fx.Node, axis: int) -> int | None:
    """How many channels of zeros a bottom-up node makes of nothing by a number that can be written anew; else None."""
    if _name(node) not in {"zeros", "new_zeros"}:
        return None
    at = size_item(node, axis)
    return None if at is None else _sizes(node)[at]


def size_item(node: fx.Node, axis: int) -> int | None:
    """Which item of the shape that a node is given is the number of channels; None if it is no number."""
    sizes = _sizes(node)
    return axis if axis < len(sizes) and isinstance(sizes[axis], int) else None


def _sizes(node: fx.Node) -> list[Any]:
    given: Any = node.args[1:] if node.op == "call_method" else node.args
    return list(given[0]) if given and isinstance(given[0], (tuple, list)) else list(given)


def with_size(node: fx.Node, at: int, number: int) -> None:
    """Write one item of the shape that a node is given anew."""
    own, given = (node.args[:1], node.args[1:]) if node.op == "call_method" else ((), node.args)
    sizes = _sizes(node)
    sizes[at] = number
    node.args = (*own, sizes, *given[1:]) if isinstance(given[0], (tuple, list)) else (*own, *sizes)


def widened(reading: Reading, source: fx.Node) -> tuple[fx.Node, bool] | None:
    """The map to which a bottom-up node adds channels of zeros, and whether their number can be written anew."""
    axis, row = facts(source).axis, reading.row(source)
    if axis is None or not source.all_input_nodes:
        return None
    if reading.kind(source) is Kind.PAD:
        amounts, at = padding_of(reading, source), 2 * (facts(source).value.dim() - 1 - axis)
        return (source.all_input_nodes[0], True) if any(amounts[at : at + 2]) else None
    if row is None or row.width is not Width.SUM or not isinstance(source.args[0], (tuple, list)):
        return None
    parts = [n for n in source.args[0] if isinstance(n, fx.Node)]
    known = [zero_channels(n, axis) is not None for n in parts]
    others = [n for n, is_new in zip(parts, known, strict=True) if not is_new and not _is_zero(n)]
    if len(others) != 1 or len(parts) < 2 or not _is_narrower(others[0], source):
        return None
    return others[0], sum(known) == len(parts) - 1


def _is_narrower(node: fx.Node, other: fx.Node) -> bool:
    return facts(node).carries and facts(node).width < facts(other).width


def _is_zero(node: fx.Node) -> bool:
    """Whether a node makes zeros of a map's shape."""
    factors = [n for n in node.args if isinstance(n, (int, float))]
    return _name(node) in {"zeros_like", "zeros", "new_zeros"} or ("mul" in _name(node) and 0 in factors)


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def padding_of(reading: Reading, source: fx.Node) -> list[int]:
    """The amounts of a bottom-up padding, the last axis first."""
    module = reading.captured.module(source)
    given: Any = getattr(module, "padding", None) if module is not None else source.kwargs.get("pad", source.args[1:2])
    given = given[0] if isinstance(given, tuple) and given and isinstance(given[0], (tuple, list)) else given
    return [_number(n) for n in given] if isinstance(given, (tuple, list)) else []


def module_path(node: fx.Node) -> list[tuple[str, type]]:
    """The modules that a node runs in, outermost first; the root and the called layer itself are left out."""
    stack = [(path, kind) for path, kind in facts(node).modules if path]
    return stack[:-1] if node.op == "call_module" and stack and stack[-1][0] == node.target else stack


def place_of(node: fx.Node) -> str:
    """A bottom-up node as the user knows it: its module's path, else its name in the graph."""
    stack = [path for path, _ in facts(node).modules if path]
    return stack[-1] if stack else node.name


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a value: itself, or those of a tuple that a split returns."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [v for v in value if isinstance(v, torch.Tensor)] if isinstance(value, (tuple, list)) else []
