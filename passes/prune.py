"""Take away what turned out not to change a width: 1x1 transitions and projections (SPEC 2.4, 2.6)."""

from __future__ import annotations

import itertools

from torch import fx

from td_compiler.graph.notes import plan
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import TopDown, operator_of
from td_compiler.graph.units import Projection

__all__ = ["drop_empty", "prune"]


def prune(top_down: TopDown) -> bool:
    """Take away 1x1 transitions and projections between equal widths; whether there were any."""
    pruned = False
    for stage in top_down.stages:
        adapted, x = stage.adapted, stage.x
        if adapted is not None and x is not None and plan(x).width == plan(adapted).width:
            adapted.replace_all_uses_with(x)
            stage.adapted = None
            pruned = True
        for projection in stage.projections:
            way = next(way for n in projection.join.all_input_nodes if (way := _way_back(n, projection)))
            inputs, place = stage.inputs[projection.unit], projection.of_input
            shortcut = way[-1].all_input_nodes[0] if place is None else inputs[place]
            if plan(shortcut).width == plan(projection.join).width:
                _bypass(top_down, projection, way, shortcut)
                pruned = True
        if pruned:
            _erase_unused(stage.graph)
    return pruned


def drop_empty(top_down: TopDown) -> None:
    """Take away what turned out to have no channels: in concatenations, slices and paddings."""
    for graph in top_down.graphs():
        changed = False
        for node in list(graph.nodes):
            if (pads := plan(node).pads) is not None and not any(pads):
                node.replace_all_uses_with(node.all_input_nodes[0])
            elif _joins(top_down, node) and any(map(_is_empty, node.all_input_nodes)):
                left = [n for n in node.args[0] if not _is_empty(n)]
                if len(left) == 1:
                    node.replace_all_uses_with(left[0])
                else:
                    node.args = (left, *node.args[1:])
            else:
                continue
            changed = True
        if changed:
            _erase_unused(graph)


def _is_empty(node: fx.Node) -> bool:
    return plan(node).carries and plan(node).width == 0


def _joins(top_down: TopDown, node: fx.Node) -> bool:
    row = operator_of(top_down, node)
    return row is not None and row.width is Width.SUM and bool(node.args) and isinstance(node.args[0], (list, tuple))


def _bypass(top_down: TopDown, projection: Projection, way: list[fx.Node], shortcut: fx.Node) -> None:
    """Let the join read the shortcut, upsampled where the projection's input or output was."""
    ahead = [way[-1].all_input_nodes[0]]
    while _keeps_channels(top_down, ahead[-1]) and ahead[-1] is not shortcut:
        ahead.append(ahead[-1].all_input_nodes[0])
    kept = [node for node in way if node not in projection.nodes]
    if any(_is_upsample(top_down, node) for node in ahead):
        kept += ahead[:-1]
    projection.join.replace_input_with(way[0], kept[0] if kept else shortcut)
    if kept:
        kept[-1].replace_input_with(kept[-1].all_input_nodes[0], shortcut)
    for later, earlier in itertools.pairwise(kept):
        later.replace_input_with(later.all_input_nodes[0], earlier)


def _way_back(node: fx.Node, projection: Projection) -> list[fx.Node]:
    """The nodes from a join's input back to the projection's first; none if they do not lead there."""
    way = [node]
    while way[-1].all_input_nodes:
        way.append(way[-1].all_input_nodes[0])
    while way and way[-1] not in projection.nodes:
        way.pop()
    return way


def _keeps_channels(top_down: TopDown, node: fx.Node) -> bool:
    """Whether a new node upsamples or changes the order of axes."""
    return _is_upsample(top_down, node) or (plan(node).source is None and node.target == "permute")


def _is_upsample(top_down: TopDown, node: fx.Node) -> bool:
    row = operator_of(top_down, node)
    return row is not None and row.kind is Kind.UPSAMPLE


def _erase_unused(graph: fx.Graph) -> None:
    """Take away what no one reads any more, parameters too: one that stayed would never get a gradient."""
    for node in reversed(graph.nodes):
        if (node.op.startswith("call_") or node.op == "get_attr") and not node.users:
            graph.erase_node(node)
