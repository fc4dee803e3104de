"""The order of a map's axes: what the compiler adds works on (N, C, H, W), a network's own units may not."""

from __future__ import annotations

from torch import fx

__all__ = ["channel_axis", "in_order"]

_PERMUTATIONS = {1: (0, 3, 1, 2), 3: (0, 2, 3, 1)}


def channel_axis(node: fx.Node) -> int:
    """Where the channels of a top-down node's map are: 1 in (N, C, H, W), 3 in (N, H, W, C)."""
    while "axis" not in node.meta:
        source = node.meta.get("source")
        if source is not None and source.meta.get("axis") is not None:
            return int(source.meta["axis"])
        if not node.all_input_nodes:
            return 1
        node = node.all_input_nodes[0]
    return int(node.meta["axis"])


def in_order(graph: fx.Graph, node: fx.Node, axis: int) -> fx.Node:
    """A map with its channels on the given axis: the node itself, or a permutation put in at the insertion point."""
    if channel_axis(node) == axis or axis not in _PERMUTATIONS:
        return node
    permuted = graph.call_method("permute", (node, *_PERMUTATIONS[axis]))
    permuted.meta = {"axis": axis, "unit": "", "class_name": "", "stride": (1, 1)}
    return permuted
