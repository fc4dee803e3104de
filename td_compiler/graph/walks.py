"""Ways through a graph: what a node reads, and all that it is computed of."""

from __future__ import annotations

from torch import fx

__all__ = ["ancestors", "arguments"]


def ancestors(node: fx.Node) -> set[fx.Node]:
    """All nodes that a node is computed of, itself left out."""
    found: set[fx.Node] = set()
    stack = list(node.all_input_nodes)
    while stack:
        before = stack.pop()
        if before not in found:
            found.add(before)
            stack.extend(before.all_input_nodes)
    return found


def arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among a node's arguments, in order, each as often as it stands there."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(n) or n)  # type: ignore[func-returns-value]
    return found
