"""Find the number of channels everywhere (SPEC 2.6), and take away what turns out not to be needed (SPEC 2.4).

Every tensor's channel axis is a variable. The operator table says how the variables of an operator's inputs and output
relate: equal, free, sum, flat. Equal variables are one class; a class holds either a given number (the image's
channels, a sum) or the width wanted by the first layer in it that is free to choose.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

from torch import fx

from td_compiler.errors import ConversionError
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import Conversion, Pass, layer_of, operator_of
from td_compiler.graph.units import Layer
from td_compiler.network.base import handed_on
from td_compiler.passes.nodes import (
    arguments,
    channel_slice,
    is_depthwise,
    is_parameter,
    parameter_axis,
    place_of,
    root_parameter,
)
from td_compiler.passes.prune import prune
from td_compiler.passes.trace_channels import is_map

__all__ = ["SetWidths"]


class SetWidths(Pass):
    """Sets `node.meta["width"]` (channels) everywhere; prunes 1x1 transitions and projections between equal widths."""

    def requires(self, conversion: Conversion) -> None:
        assert all(stage.entry is not None for stage in conversion.stages[1:]), "InsertEntries has not run"

    def apply(self, conversion: Conversion) -> None:
        _Solver(conversion).solve()
        if prune(conversion):
            _Solver(conversion).solve()
        _note_features(conversion)

    def ensures(self, conversion: Conversion) -> None:
        for graph in conversion.graphs():
            maps = [n for n in graph.nodes if n.op == "call_module"]
            assert all(isinstance(n.meta.get("width"), int) for n in maps)


def _note_features(conversion: Conversion) -> None:
    """A network without classifier returns its pooled features: as many as its last stage has, not as the source's."""
    head = conversion.graphs()[-1]
    width, expected = head.output_node().all_input_nodes[0].meta["width"], conversion.output_shape[1]
    if width == expected:
        return
    read = next(iter(head.nodes)).meta["width"]
    if width * conversion.found.features.meta["width"] != expected * read:
        raise ConversionError(
            f"the output is no class score but {expected} features of a flattened map: give the network a classifier,"
            " or a global pooling for a head."
        )
    conversion.features = width
    conversion.notes.append(
        f"The network has no classifier: it returns its {width} features, where the source returns {expected}."
    )


class _Solver:
    """Union-find over the nodes of all graphs, in running order."""

    def __init__(self, conversion: Conversion) -> None:
        self.conversion = conversion
        self._parent: dict[fx.Node, fx.Node] = {}
        self._given: dict[fx.Node, int] = {}  # class -> a width that follows from others
        self._wanted: dict[fx.Node, tuple[int, int]] = {}  # class -> (place in the order, wish) of its first free layer
        self._multiple: dict[fx.Node, int] = {}  # class -> what its width must be a multiple of
        self._derived: dict[fx.Node, tuple[fx.Node, Fraction]] = {}  # node -> the one that it is a part or multiple of
        self._parts_of: dict[fx.Node, list[fx.Node]] = {}  # node -> the parts of a concatenation that it takes
        self._copied: dict[fx.Node, tuple[fx.Node, int]] = {}  # node with filters for each channel -> that, its wish

    def solve(self) -> None:
        """Relate, then read off in running order."""
        nodes = self._nodes()
        for place, node in enumerate(nodes):
            self._relate(node, place)
        for node in nodes:
            self._evaluate(node)
        for node in nodes:
            if node.op != "get_attr" or node in self._resized:
                node.meta["width"] = self._width(node)

    def _nodes(self) -> list[fx.Node]:
        """All nodes that carry image data or parameters; a segment's `x` and `older` are outputs of the one before."""
        nodes: list[fx.Node] = []
        self._resized: dict[fx.Node, int] = {}  # parameter -> its axis that follows a map's channels
        carried: tuple[fx.Node, ...] = ()
        for graph in self.conversion.graphs():
            for node in graph.nodes:
                if node.op == "output":
                    carried = handed_on(graph)
                    continue
                source = node.meta.get("source")
                if source is not None and "width" not in source.meta and node.op != "get_attr":
                    continue  # a size
                self._parent[node] = node
                nodes.append(node)
                if node.op == "placeholder" and node.target == "image":
                    self._given[node] = self.conversion.image_size[0]
                elif node.op == "placeholder" and carried:
                    self._union(node, carried[node.target == "older"])
        return nodes

    def _find(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _union(self, one: fx.Node, other: fx.Node) -> None:
        """Make two variables one: a given width wins, else the wish that comes first."""
        old, new = self._find(one), self._find(other)
        if old is new:
            return
        self._parent[old] = new
        if old in self._given:
            self._given.setdefault(new, self._given.pop(old))
        if old in self._wanted:
            wish = self._wanted.pop(old)
            self._wanted[new] = min(wish, self._wanted.get(new, wish))
        self._need_multiple(new, self._multiple.pop(old, 1))

    def _need_multiple(self, node: fx.Node, of: int) -> None:
        root = self._find(node)
        self._multiple[root] = math.lcm(self._multiple.get(root, 1), of)

    def _relate(self, node: fx.Node, place: int) -> None:
        row, layer = operator_of(self.conversion, node), layer_of(self.conversion, node)
        if node.op in {"placeholder", "get_attr"}:
            return
        operands = self._operands(node)
        if row is not None and row.width is Width.SUM and self._joins_channels(node):
            return
        if row is not None and row.width is Width.FREE:
            self._relate_layer(node, layer, operands[0], place)
            for other in operands[1:]:
                if other.op != "get_attr":  # what mixes the filters, one number for each expert
                    self._given[self._find(other)] = int(other.meta["source"].meta["width"])
            return
        if "source" not in node.meta:
            for operand in operands:
                self._union(node, operand)
            return
        self._relate_by_shape(node, operands)

    def _relate_layer(self, node: fx.Node, layer: Layer | None, operand: fx.Node, place: int) -> None:
        """A layer that chooses its width, unless it has one group per input channel: then it keeps it or a multiple."""
        wish = int(node.meta["wanted"] if "wanted" in node.meta else node.meta["source"].meta["width"])
        if layer is not None and is_depthwise(layer.prototype):
            if layer.prototype.out_channels == layer.prototype.in_channels:
                self._union(node, operand)
            else:
                self._copied[node] = (operand, wish)
            return
        root = self._find(node)
        self._wanted[root] = min((place, wish), self._wanted.get(root, (place, wish)))
        if layer is not None and layer.own:  # a new layer takes the groups that fit
            groups = int(getattr(layer.prototype, "groups", 1))
            self._need_multiple(node, groups)
            self._need_multiple(operand, groups)

    def _relate_by_shape(self, node: fx.Node, operands: list[fx.Node]) -> None:
        """By the bottom-up widths: what was equal stays equal, a part stays the same part."""
        source = node.meta["source"]
        row = operator_of(self.conversion, node)
        if row is None or row.width is Width.UNKNOWN:
            self._check_plain(node)
        if source.meta["axis"] == 1 and source.meta["size"] is None and self._folds_map(source):
            return
        if parts := self._parts(node, operands[0]):
            self._parts_of[node] = parts
            return
        widths = self._own_widths(node, operands)
        first = max(operands, key=lambda n: widths[n] or 0)
        if source.meta["width"] == 1 < widths[first]:  # a mean over the channels
            self._given[self._find(node)] = 1
        elif widths[first]:
            self._follow(node, first, Fraction(source.meta["width"], widths[first]))
        for other in operands:
            if other is not first and widths[other] == widths[first]:
                self._union(other, first)

    def _parts(self, node: fx.Node, operand: fx.Node) -> list[fx.Node]:
        """What a slice takes of a concatenation, if it takes whole parts of it."""
        row, taken = operator_of(self.conversion, operand), channel_slice(node)
        if taken is None or row is None or row.width is not Width.SUM or not self._joins_channels(operand):
            return []
        parts = self._operands(operand)
        ends = list(
            itertools.accumulate((n.meta["source"].meta["width"] for n in parts if "source" in n.meta), initial=0)
        )
        start, stop = taken.start or 0, ends[-1] if taken.stop is None else taken.stop
        if len(ends) <= len(parts) or start not in ends or stop not in ends or taken.step not in (None, 1):
            return []
        return parts[ends.index(start) : ends.index(stop)]

    def _check_plain(self, node: fx.Node) -> None:
        """Without a rule in the table an operator may not have parameters: they would say how channels flow."""
        layer = layer_of(self.conversion, node)
        of_layer = list(layer.prototype.parameters()) if layer else []
        if of_layer or any(n.op == "get_attr" and n.target != "training" for n in arguments(node)):
            what = type(layer.prototype).__name__ if layer else getattr(node.target, "__name__", node.target)
            raise ConversionError(
                f"no rule says how channels flow through {what} at {place_of(node.meta['source'])!r}:"
                " add a row to the operator table (td_compiler.graph.operators)."
            )

    def _own_widths(self, node: fx.Node, operands: list[fx.Node]) -> dict[fx.Node, int]:
        """The widths of a node's inputs in the bottom-up network, where they stand in the same places."""
        source = node.meta["source"]
        before = [
            n for n in (root_parameter(n) or n for n in arguments(source)) if "width" in n.meta or is_parameter(n)
        ]
        if len(before) != len(operands):
            before = before[:1] * len(operands)
        widths: dict[fx.Node, int] = {}
        for operand, own in zip(operands, before, strict=True):
            axis = parameter_axis(operand, node) if operand.op == "get_attr" else None
            if axis is not None:
                operand.meta["axis"] = self._resized[operand] = axis
            value = own.meta["value"]
            known = own.meta.get("width", value.shape[axis] if axis is not None else 0)
            widths[operand] = max(int(known), widths.get(operand, 0))
        return widths

    def _follow(self, node: fx.Node, operand: fx.Node, share: Fraction) -> None:
        if share == 1:
            self._union(node, operand)
        else:
            self._need_multiple(operand, share.denominator)
            self._derived[node] = (operand, share)

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """The inputs whose channels an operator relates; the image that an upsampling reads its size from is none."""
        read = [root_parameter(n) or n for n in arguments(node)]
        operands = [n for n in read if n in self._parent and n.target != "training"]
        row = operator_of(self.conversion, node)
        return operands[:1] if row is not None and row.kind is Kind.UPSAMPLE else operands

    def _joins_channels(self, node: fx.Node) -> bool:
        source = node.meta.get("source")
        if source is None:
            return True
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return isinstance(dim, int) and dim % source.meta["value"].dim() == source.meta["axis"]

    def _folds_map(self, source: fx.Node) -> bool:
        """Whether a node folds a map's pixels into features."""
        if source not in self.conversion.found.head:
            return False
        before = next(n for n in source.all_input_nodes if "width" in n.meta)
        if source.meta["value"].dim() != 2 or not is_map(before):
            return False
        return bool(source.meta["width"] != before.meta["width"])

    def _evaluate(self, node: fx.Node) -> None:
        row, source = operator_of(self.conversion, node), node.meta.get("source")
        inputs = [n for n in node.all_input_nodes if n in self._parent]
        if node in self._parts_of:
            self._given[self._find(node)] = sum(self._width(part) for part in self._parts_of[node])
        elif node in self._derived:
            operand, share = self._derived[node]
            self._given[self._find(node)] = int(self._width(operand) * share)
        elif node in self._copied:
            operand, wish = self._copied[node]
            self._given[self._find(node)] = self._width(operand) * max(1, round(wish / self._width(operand)))
        elif row is not None and row.width is Width.SUM and node.op.startswith("call") and self._joins_channels(node):
            self._given[self._find(node)] = sum(self._width(n) for n in inputs)
        elif source is not None and node.op.startswith("call") and self._is_flatten(node):
            self._given[self._find(node)] = self._width(inputs[0]) * self._pixels(node)

    def _is_flatten(self, node: fx.Node) -> bool:
        row, source = operator_of(self.conversion, node), node.meta["source"]
        free = row is not None and row.width in {Width.FREE, Width.SUM}
        return not free and source.meta["axis"] == 1 and source.meta["size"] is None and self._folds_map(source)

    def _pixels(self, node: fx.Node) -> int:
        """Height times width that a flatten folds into the features: the size that its map has in the source too."""
        before = next(n for n in node.meta["source"].all_input_nodes if "width" in n.meta)
        return math.prod(before.meta["size"])

    def _width(self, node: fx.Node) -> int:
        root = self._find(node)
        if root in self._given:
            return self._given[root]
        if root not in self._wanted:
            source = node.meta.get("source", node)
            raise ConversionError(f"the width of {place_of(source)!r} does not follow from any layer.")
        multiple = self._multiple.get(root, 1)
        return max(1, round(self._wanted[root][1] / multiple)) * multiple
