"""Paths put on an axis of their own are a sum where they are added up, a concatenation where they are laid out."""

from __future__ import annotations

import operator

import torch
from torch import fx

from td_compiler.graph.moves import reduced_axes
from td_compiler.graph.notes import copied, facts
from td_compiler.graph.states import Pass, Reading

__all__ = ["SumPaths"]

_NAMES = {"sum", "mean"}


class SumPaths(Pass[Reading]):
    """`torch.stack([a, b]).mean(0)` becomes `(a + b) * 0.5`, of which all rules about sums hold (SPEC 1.1).

    `torch.stack([a, b], 2).flatten(1, 2)`, channels of both in turn, becomes `torch.cat([a, b], 1)` and a shuffle.
    """

    def requires(self, reading: Reading) -> None:
        assert facts(reading.captured.output).value is not None, "the graph carries no values"

    def apply(self, reading: Reading) -> None:
        graph = reading.captured.graph
        for node in graph.find_nodes(op="call_function", target=torch.stack):
            paths = node.args[0]
            if not isinstance(paths, (tuple, list)) or not all(isinstance(path, fx.Node) for path in paths):
                continue
            for user in list(node.users):
                if _adds_up(user, node):
                    total = _total(graph, user, list(paths))
                    user.replace_all_uses_with(total)
                    graph.erase_node(user)
                elif (at := _lays_out(user, node, list(paths))) is not None:
                    laid = _laid_out(graph, user, list(paths), shuffled=at == 2)
                    user.replace_all_uses_with(laid)
                    graph.erase_node(user)
            if not node.users:
                graph.erase_node(node)

    def ensures(self, reading: Reading) -> None:
        reading.captured.graph.lint()


def _adds_up(user: fx.Node, stacked: fx.Node) -> bool:
    """Whether a node takes the sum or mean over the axis that a stack has put in, and over no other."""
    name, value = str(getattr(user.target, "__name__", user.target)), facts(stacked).value
    at = stacked.kwargs.get("dim", stacked.args[1] if len(stacked.args) > 1 else 0)
    if name not in _NAMES or not isinstance(at, int) or user.args[:1] != (stacked,):
        return False
    plain = facts(user).value.dim() == value.dim() - 1 and "dtype" not in user.kwargs
    return plain and reduced_axes(user, value.dim()) == {at % value.dim()}


def _lays_out(user: fx.Node, stacked: fx.Node, paths: list[fx.Node]) -> int | None:
    """Where a stack has put its axis, before or behind the channels, if a node makes the two one; None if not."""
    name, value, made = str(getattr(user.target, "__name__", user.target)), facts(stacked).value, facts(user).value
    at = stacked.kwargs.get("dim", stacked.args[1] if len(stacked.args) > 1 else 0)
    if name not in {"flatten", "view", "reshape"} or not isinstance(at, int) or user.args[:1] != (stacked,):
        return None
    batch, channels, *sides = facts(paths[0]).value.shape
    same = tuple(made.shape) == (batch, len(paths) * channels, *sides)
    return at % value.dim() if same and len(sides) == 2 and at % value.dim() in {1, 2} else None


def _laid_out(graph: fx.Graph, user: fx.Node, paths: list[fx.Node], *, shuffled: bool) -> fx.Node:
    """The channels of all paths, one path after the other or, shuffled, one of each in turn."""
    values = [facts(path).value for path in paths]
    with graph.inserting_before(user):
        laid = _noted(user, graph.call_function(torch.cat, (paths, 1)), torch.cat(values, 1))
        for name, args in _SHUFFLE if shuffled else ():
            given = ((len(paths), -1),) if name == "unflatten" else ()
            value = getattr(facts(laid).value, name)(*args, *given)
            laid = _noted(user, graph.call_method(name, (laid, *args, *given)), value)
    return laid


_SHUFFLE: tuple[tuple[str, tuple[int, ...]], ...] = (("unflatten", (1,)), ("transpose", (1, 2)), ("flatten", (1, 2)))


def _total(graph: fx.Graph, user: fx.Node, paths: list[fx.Node]) -> fx.Node:
    """The sum of paths, or their mean, in the place of a node that computed it otherwise."""
    with graph.inserting_before(user):
        total = paths[0]
        for path in paths[1:]:
            total = _noted(user, graph.call_function(operator.add, (total, path)))
        if "mean" in str(getattr(user.target, "__name__", user.target)):
            total = _noted(user, graph.call_function(operator.mul, (total, 1 / len(paths))))
    return total


def _noted(like: fx.Node, made: fx.Node, value: torch.Tensor | None = None) -> fx.Node:
    made.meta = copied(like)
    if value is not None:
        facts(made).value = value
    return made
