"""Where an operation moves the axes of a tensor to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from td_compiler.graph.notes import facts

__all__ = ["inserted", "is_reduction", "moved", "permutation", "reduced_axes", "reduces"]

_REDUCTIONS = {
    *("sum", "mean", "amax", "amin", "max", "min", "median", "var", "std", "norm", "vector_norm", "prod", "logsumexp"),
    *("all", "any", "argmax", "argmin", "nansum", "nanmean"),
}
_RESHAPES = {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"}


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _argument(node: fx.Node, at: int, *names: str) -> Any:
    given: Any = (
        node.args[at] if len(node.args) > at else next((node.kwargs[n] for n in names if n in node.kwargs), None)
    )
    return facts(given).value if isinstance(given, fx.Node) else given


def permutation(node: fx.Node, dims: int) -> list[int] | None:
    """The order of axes that a permutation or transposition makes; None for any other operation."""
    name, args = _name(node), node.args[1:]
    if name == "permute":
        given: Any = args[0] if args and isinstance(args[0], (tuple, list)) else args or node.kwargs.get("dims", ())
        return [int(d) % dims for d in given]
    if name in {"transpose", "swapaxes", "swapdims"}:
        order = list(range(dims))
        one, other = _argument(node, 1, "dim0", "axis0") % dims, _argument(node, 2, "dim1", "axis1") % dims
        order[one], order[other] = order[other], order[one]
        return order
    if name in {"movedim", "moveaxis"}:
        start, end = _argument(node, 1, "source"), _argument(node, 2, "destination")
        if isinstance(start, int) and isinstance(end, int):
            order = [d for d in range(dims) if d != start % dims]
            order.insert(end % dims, start % dims)
            return order
    return None


def is_reduction(node: fx.Node) -> bool:
    """Whether a node takes the sum, mean, maximum, ... of its first argument over some axes or all."""
    return _name(node) in _REDUCTIONS


def reduced_axes(node: fx.Node, dims: int) -> set[int]:
    """The axes over which a reduction of a tensor with so many axes runs."""
    given: Any = _argument(node, 2 if _name(node) in {"norm", "vector_norm"} else 1, "dim", "axis")
    if given is None:
        return set(range(dims))
    return {int(d) % dims for d in (given if isinstance(given, (tuple, list)) else [given]) if isinstance(d, int)}


def reduces(node: fx.Node, axis: int, before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a node leaves one number where its input has all those along an axis."""
    if _name(node) == "getitem":
        index = _index(node, len(before))
        return index is not None and any(source == axis and not keeps for source, keeps in index)
    return is_reduction(node) and axis in reduced_axes(node, len(before))


def _index(node: fx.Node, dims: int) -> list[tuple[int | None, bool]] | None:
    """What each item of an index does: (axis that it reads, None for a new one; whether that stays an axis)."""
    given: Any = node.args[1] if len(node.args) > 1 else ()
    items = list(given) if isinstance(given, tuple) else [given]
    reads = sum(item is not None and item is not Ellipsis for item in items)
    found: list[tuple[int | None, bool]] = []
    axis = 0
    if Ellipsis not in items:
        items.append(Ellipsis)
    for item in items:
        if item is None:
            found.append((None, True))
        elif item is Ellipsis:
            for _ in range(dims - reads):
                found.append((axis, True))
                axis += 1
        else:
            value = facts(item).value if isinstance(item, fx.Node) else item
            found.append((axis, not isinstance(value, int)))
            axis += 1
    return found


def inserted(node: fx.Node, dims: int) -> list[int]:
    """The axes of its output that a node puts in (`unsqueeze`, `stack`, an index `None`), its input having `dims`."""
    name = _name(node)
    if name in {"unsqueeze", "stack"}:
        return [int(_argument(node, 1, "dim") or 0) % (dims + 1)]
    if name == "getitem":
        kept = [source for source, keeps in _index(node, dims) or [] if keeps]
        return [at for at, source in enumerate(kept) if source is None]
    return []


def moved(node: fx.Node, axis: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Where an axis of a node's input is in its output; None where it is no more, or no rule says.

    Args:
        node: the operation.
        axis: the axis of its input.
        before: the input's shape.
        after: the output's shape.
    """
    name, dims = _name(node), len(before)
    order = permutation(node, dims)
    if order is not None:
        return order.index(axis)
    if name == "getitem":
        kept = [source for source, keeps in _index(node, dims) or [] if keeps]
        return kept.index(axis) if axis in kept and len(kept) == len(after) else None
    if name in {"unsqueeze", "stack"}:
        return axis + (inserted(node, dims)[0] <= axis)
    if name == "squeeze":
        given: Any = _argument(node, 1, "dim")
        given = [d for d, n in enumerate(before) if n == 1] if given is None else given
        gone = {int(d) % dims for d in (given if isinstance(given, (tuple, list)) else [given])}
        gone = {d for d in gone if before[d] == 1}
        return None if axis in gone else axis - sum(d < axis for d in gone)
    if is_reduction(node):
        gone = reduced_axes(node, dims)
        if axis in gone:
            return axis if len(after) == dims else None
        return axis if len(after) == dims else axis - sum(d < axis for d in gone)
    if name == "unfold":  # a map of one row: windows along it
        return {1: 1, 3: 2 if before[2] == 1 and after[-1] == before[3] else None}.get(axis)
    if name in _RESHAPES:
        ahead = math.prod(before[:axis])
        places = [i for i, n in enumerate(after) if n == before[axis] and math.prod(after[:i]) == ahead]
        return min(places, key=lambda place: abs(place - axis), default=None)
    return axis - dims + len(after) if len(after) >= dims else None  # as values meet values of more axes
