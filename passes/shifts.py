"""Where a map is padded and cropped: by how many pixels on which side, and where it has its size again."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind
from td_compiler.graph.states import Reading
from td_compiler.passes.nodes import item_of, padding_of
from td_compiler.passes.trace_channels import is_map

__all__ = ["Ends", "Sides", "ends_of", "is_moved", "pixels_added", "strides_next"]

Sides = tuple[tuple[int, int], tuple[int, int]]
"""Pixels put in (above, below), (left, right); those cut off count as negative."""


def pixels_added(reading: Reading, node: fx.Node) -> Sides | None:
    """What a padding or a slice puts around its map, or cuts off it; None where it does neither, or something else."""
    read = next((n for n in node.all_input_nodes if facts(n).carries), None)
    if read is None or not is_map(read) or not is_map(node) or facts(node).axis != facts(read).axis:
        return None
    before, after = facts(read).value, facts(node).value
    axes = [axis for axis in range(1, 4) if axis != facts(read).axis]
    if reading.kind(node) is Kind.PAD:
        amounts = padding_of(reading, node)
        found = [tuple(amounts[at : at + 2]) or (0, 0) for at in (2 * (before.dim() - 1 - axis) for axis in axes)]
    elif facts(node).width != facts(read).width and before.shape[axes[0]] == after.shape[axes[0]]:
        return None
    elif node.target is operator.getitem or getattr(node.target, "__name__", node.target) == "narrow":
        found = [_cut_off(node, axis, before.shape) for axis in axes]
    else:
        return None
    made = [before.shape[axis] + sum(pair) for axis, pair in zip(axes, found, strict=True)]
    if made != [after.shape[axis] for axis in axes] or not any(map(any, found)):
        return None
    return found[0], found[1]  # type: ignore[return-value]


def _cut_off(node: fx.Node, axis: int, shape: torch.Size) -> tuple[int, int]:
    if node.target is not operator.getitem:
        dim, start, length = (_number(a) for a in node.args[1:4])
        return (-start, start + length - shape[axis]) if dim % len(shape) == axis else (0, 0)
    at, given = item_of(node, axis, len(shape)), node.args[1]
    taken: Any = None if at is None else given[at] if isinstance(given, tuple) else given
    if not isinstance(taken, slice) or _number(taken.step) not in {None, 1}:
        return 0, 0
    start, stop, _ = slice(_number(taken.start), _number(taken.stop)).indices(shape[axis])
    return -start, stop - shape[axis]


def _number(value: Any) -> Any:
    return facts(value).value if isinstance(value, fx.Node) else value


@dataclass
class Ends:
    """Where the ways lead from a node that makes its map a little larger or smaller.

    Attributes:
        between: what computes on the map while it has another size; first the node itself.
        returns: what gives it its size again.
        convolutions: those that read it before.
        elsewhere: what else it ends in: strides, global poolings, vectors.
    """

    between: list[fx.Node] = field(default_factory=list)
    returns: list[fx.Node] = field(default_factory=list)
    convolutions: list[fx.Node] = field(default_factory=list)
    elsewhere: list[fx.Node] = field(default_factory=list)


def ends_of(reading: Reading, start: fx.Node) -> Ends:
    """Follow a map that was padded or cropped up to where it has its size again, or is convolved or pooled."""
    read = next(n for n in start.all_input_nodes if facts(n).carries)
    size, ends, reached = facts(read).size, Ends(), {start}
    if facts(start).size == size:
        ends.returns.append(start)
        return ends
    ends.between.append(start)
    for node in ends.between:  # grows on the way
        for user in node.users:
            if user in reached or not facts(user).carries:
                continue
            reached.add(user)
            kind = reading.kind(user)
            if kind is Kind.CONV:
                ends.convolutions.append(user)
            elif kind is Kind.GLOBAL_POOL or not is_map(user) or reading.stride(user) != (1, 1):
                ends.elsewhere.append(user)
            else:
                (ends.returns if facts(user).size == size else ends.between).append(user)
    return ends


def is_moved(reading: Reading, start: fx.Node, ends: Ends) -> bool:
    """Whether a map that was padded and cropped lies elsewhere than before, and no stride is what that was for.

    Where a stride follows at once it chose between the pixels of the map, which the top-down network does not.
    """
    if ends.convolutions or ends.elsewhere or not ends.returns:
        return False
    return not any(strides_next(reading, node) for node in ends.returns)


def strides_next(reading: Reading, start: fx.Node) -> bool:
    """Whether what reads a map strides, at once or behind a norm or an activation."""
    readers = [user for user in start.users if facts(user).carries]
    while readers:
        node = readers.pop()
        if reading.stride(node) != (1, 1):
            return True
        if reading.kind(node) in {Kind.ACTIVATION, Kind.NORM, Kind.IDENTITY, Kind.DROPOUT}:
            readers.extend(user for user in node.users if facts(user).carries)
    return False
