"""The order of a map's axes: what the compiler adds works on (N, C, H, W), a network's own units may not."""

from __future__ import annotations

from torch import fx

from td_compiler.graph.notes import Plan, facts, noted, plan

__all__ = ["channel_axis", "in_order"]

_PERMUTATIONS = {1: (0, 3, 1, 2), 3: (0, 2, 3, 1)}


def channel_axis(node: fx.Node) -> int:
    """Where the channels of a top-down node's map are: 1 in (N, C, H, W), 3 in (N, H, W, C)."""
    while True:
        known = plan(node)
        axis = known.axis
        if axis is None and known.source is not None:
            axis = facts(known.source).axis
        if axis is not None:
            return axis
        if not node.all_input_nodes:
            return 1
        node = node.all_input_nodes[0]


def in_order(graph: fx.Graph, node: fx.Node, axis: int | None) -> fx.Node:
    """A map with its channels on the given axis: the node itself, or a permutation put in at the insertion point."""
    if channel_axis(node) == axis or axis not in _PERMUTATIONS:
        return node
    permuted = graph.call_method("permute", (node, *_PERMUTATIONS[axis]))
    noted(permuted, Plan(axis=axis))
    return permuted
