"""Paths put on an axis of their own and added up, or averaged, are a sum (SPEC 1.1)."""

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
    """`torch.stack([a, b]).mean(0)` becomes `(a + b) * 0.5`, of which all rules about sums hold."""

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


def _total(graph: fx.Graph, user: fx.Node, paths: list[fx.Node]) -> fx.Node:
    """The sum of paths, or their mean, in the place of a node that computed it otherwise."""
    with graph.inserting_before(user):
        total = paths[0]
        for path in paths[1:]:
            total = _noted(user, graph.call_function(operator.add, (total, path)))
        if "mean" in str(getattr(user.target, "__name__", user.target)):
            total = _noted(user, graph.call_function(operator.mul, (total, 1 / len(paths))))
    return total


def _noted(like: fx.Node, made: fx.Node) -> fx.Node:
    made.meta = copied(like)
    return made
