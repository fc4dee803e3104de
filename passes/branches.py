"""Where the channels of a map come from, inside a unit of the bottom-up graph."""

from __future__ import annotations

from torch import fx, nn

from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import Reading
from td_compiler.graph.units import Unit
from td_compiler.passes.nodes import channel_cut, is_depthwise, runs_along_channels

__all__ = ["branches", "residual_width", "takes_any_width"]


def branches(reading: Reading, unit: Unit, node: fx.Node) -> list[fx.Node] | None:
    """The convolutions whose filters, or the unit's inputs, whose channels, make up those of a node, in order.

    None where something else does.
    """
    row = reading.row(node)
    if node in unit.inputs or (row is not None and row.width is Width.FREE and not _keeps_width(reading, node)):
        return [node]
    inputs = [n for n in node.all_input_nodes if facts(n).carries]
    if row is not None and row.width is Width.SUM:
        parts = [branches(reading, unit, n) for n in inputs]
        return None if None in parts else [n for part in parts for n in part or ()]
    if row is not None and row.kind is Kind.JOIN:
        ends = [branches(reading, unit, n) for n in inputs if facts(n).width == facts(node).width]
        read = [[node] for node in unit.inputs]
        if ends and all(end in read for end in ends):
            return ends[0]
        return next((end for end in ends if end is not None and len(end) == 1 and end not in read), None)
    if len(inputs) == 1 and facts(inputs[0]).width == facts(node).width:
        return branches(reading, unit, inputs[0])
    return None


def residual_width(reading: Reading, unit: Unit) -> int:
    """The width of a unit in the bottom-up network; of a dual path block, which adds to a part of the channels that its
    short way brings and hands on the others as they are, that of this part.
    """
    stack, reached = [unit.output], set()
    while stack:
        node = stack.pop()
        row, inputs = reading.row(node), [n for n in node.all_input_nodes if facts(n).carries]
        if node in reached or node in unit.inputs or row is None:
            continue
        reached.add(node)
        if row.width is Width.SUM and facts(node).width == unit.width:
            stack.extend(inputs)
        elif row.kind is Kind.JOIN and len(inputs) == 2 and facts(node).width < unit.width:
            short = min(inputs, key=lambda n: _convolutions(reading, unit, n))
            if channel_cut(short) is not None:
                return facts(node).width
        elif len(inputs) == 1 and facts(inputs[0]).width == facts(node).width == unit.width:
            stack.extend(inputs)
    return unit.width


def _convolutions(reading: Reading, unit: Unit, node: fx.Node) -> int:
    """How many convolutions of a unit lead to a node."""
    stack, reached = [node], set()
    while stack:
        current = stack.pop()
        if current not in reached and current not in unit.inputs:
            reached.add(current)
            stack.extend(n for n in current.all_input_nodes if facts(n).carries)
    return sum(reading.kind(n) is Kind.CONV for n in reached)


def takes_any_width(reading: Reading, unit: Unit) -> bool:
    """Whether a unit can read a map of another width and still have its own.

    Not if the channels that it reads go straight into a grouped convolution, or are among those that it puts out.
    """
    if not set(unit.inputs).isdisjoint(branches(reading, unit, unit.output) or ()):
        return False
    for node in unit.nodes:
        layer = reading.layer(node)
        grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1 and not is_depthwise(layer)
        if grouped and branches(reading, unit, node.all_input_nodes[0]) in [[read] for read in unit.inputs]:
            return False
    return True


def _keeps_width(reading: Reading, node: fx.Node) -> bool:
    """Whether a layer has one filter for each channel that it reads, or filters that run along the channels."""
    if runs_along_channels(reading, node):
        return True
    layer = reading.layer(node)
    return isinstance(layer, nn.Conv2d) and is_depthwise(layer) and layer.out_channels == layer.in_channels
