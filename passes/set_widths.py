"""Find the number of channels everywhere (SPEC 2.6), and take away what turns out not to be needed (SPEC 2.4).

Every tensor's channel axis is a variable. The operator table says how the variables of an operator's inputs and output
relate: equal, free, sum, flat. Equal variables are one class; a class holds either a given number (the image's
channels, a sum) or the width wanted by the first layer in it that is free to choose.
"""

from __future__ import annotations

import math

from torch import fx, nn

from td_compiler.conversion import Conversion, Pass, layer_of, operator_of
from td_compiler.errors import ConversionError
from td_compiler.operators import Kind, Width
from td_compiler.stages import Projection

__all__ = ["SetWidths"]


class SetWidths(Pass):
    """Sets `node.meta["width"]` (channels) everywhere; prunes 1x1 transitions and projections between equal widths."""

    def requires(self, conversion: Conversion) -> None:
        assert all(stage.entry is not None for stage in conversion.stages[1:]), "InsertEntries has not run"

    def apply(self, conversion: Conversion) -> None:
        _Solver(conversion).solve()
        if _prune(conversion):
            _Solver(conversion).solve()

    def ensures(self, conversion: Conversion) -> None:
        for graph in conversion.graphs():
            assert all(isinstance(n.meta.get("width"), int) for n in graph.nodes if n.op.startswith("call_"))
        last = next(iter(conversion.graphs()[-1].output_node().all_input_nodes))
        assert last.meta["width"] == conversion.captured.output.meta["value"].shape[1], "the number of classes changed"


class _Solver:
    """Union-find over the nodes of all graphs, in running order."""

    def __init__(self, conversion: Conversion) -> None:
        self.conversion = conversion
        self._parent: dict[fx.Node, fx.Node] = {}
        self._given: dict[fx.Node, int] = {}  # class -> a width that follows from others
        self._wanted: dict[fx.Node, int] = {}  # class -> the first free layer's wish

    def solve(self) -> None:
        """Relate, then read off in running order."""
        nodes = self._nodes()
        for node in nodes:
            self._relate(node)
        for node in nodes:
            self._evaluate(node)
        for node in nodes:
            node.meta["width"] = self._width(node)

    def _nodes(self) -> list[fx.Node]:
        """All map-carrying nodes; a segment's `x` is the output of the one before."""
        nodes: list[fx.Node] = []
        carried: fx.Node | None = None
        for graph in self.conversion.graphs():
            for node in graph.nodes:
                if node.op == "placeholder":
                    self._parent[node] = node
                    if node.target == "image":
                        self._given[node] = self.conversion.input_size[0]
                    elif carried is not None:
                        self._union(node, carried)
                    nodes.append(node)
                elif node.op == "output":
                    carried = node.all_input_nodes[0]
                else:
                    self._parent[node] = node
                    nodes.append(node)
        return nodes

    def _find(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _union(self, one: fx.Node, other: fx.Node) -> None:
        """Make two variables one; what the earlier one is given or wants comes first."""
        old, new = self._find(one), self._find(other)
        if old is new:
            return
        self._parent[old] = new
        for table in (self._given, self._wanted):
            if old in table:
                table.setdefault(new, table.pop(old))

    def _relate(self, node: fx.Node) -> None:
        row = operator_of(self.conversion, node)
        if node.op == "placeholder" or (row is not None and row.width in {Width.SUM, Width.FLAT, Width.NONE}):
            return
        if node.op == "get_attr":
            self._given[self._find(node)] = 1  # a parameter of its own does not take part: see `_operands`
        elif row is None:
            self._keep_unknown(node)
        elif row.width is Width.FREE and not self._is_depthwise(node):
            self._wanted.setdefault(self._find(node), self._wish(node))
        else:
            for operand in self._operands(node):
                self._union(node, operand)

    def _wish(self, node: fx.Node) -> int:
        return int(node.meta["wanted"] if "wanted" in node.meta else node.meta["source"].meta["value"].shape[1])

    def _is_depthwise(self, node: fx.Node) -> bool:
        layer = layer_of(self.conversion, node)
        return layer is not None and is_depthwise(layer.prototype)

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """The inputs whose channels an operator relates; a one-channel map that is broadcast is none."""
        operands = [n for n in node.all_input_nodes if n.op != "get_attr" and n.target != "image"]
        sources = {n: n.meta["source"].meta["value"] for n in operands if "source" in n.meta}
        widths = {n: v.shape[1] for n, v in sources.items() if hasattr(v, "shape") and len(v.shape) > 1}
        widest = max(widths.values(), default=1)
        return [n for n in operands if widths.get(n, widest) == widest]

    def _keep_unknown(self, node: fx.Node) -> None:
        """An operator without a row is taken to keep its channels if it kept its shape and has no parameters."""
        layer = layer_of(self.conversion, node)
        source = node.meta["source"]
        first = source.all_input_nodes[0].meta["value"]
        bare = (
            not list(layer.prototype.parameters())
            if layer
            else not any(n.op == "get_attr" for n in node.all_input_nodes)
        )
        if not bare or getattr(source.meta["value"], "shape", None) != first.shape:
            what = type(layer.prototype).__name__ if layer else getattr(node.target, "__name__", node.target)
            raise ConversionError(
                f"no rule says how channels flow through {what} at {_place(source)!r}:"
                " add a row to the operator table (td_compiler.operators)."
            )
        self._union(node, node.all_input_nodes[0])

    def _evaluate(self, node: fx.Node) -> None:
        row = operator_of(self.conversion, node)
        if row is None or row.width not in {Width.SUM, Width.FLAT}:
            return
        inputs = [n for n in node.all_input_nodes if n in self._parent]
        if row.width is Width.SUM:
            width = sum(self._width(n) for n in inputs)
        else:
            width = self._width(inputs[0]) * self._pixels(node)
        self._given[self._find(node)] = width

    def _pixels(self, node: fx.Node) -> int:
        """Height times width that a flatten folds into the features: fixed by a pooling before it, else the image's."""
        source = node.meta["source"]
        value = source.meta["value"]
        before = source.all_input_nodes[0].meta["value"]
        if before.dim() != 4 or value.dim() != 2:
            return 1
        head = self.conversion.found.head
        earlier = head[: head.index(source)]
        pooled = any(self.conversion.kind(n) in {Kind.GLOBAL_POOL, Kind.POOL} for n in earlier)
        return math.prod(before.shape[-2:] if pooled else self.conversion.input_size[1:])

    def _width(self, node: fx.Node) -> int:
        root = self._find(node)
        width = self._given.get(root, self._wanted.get(root))
        if width is None:
            raise ConversionError(f"the width of {_place(node)!r} does not follow from any layer.")
        return width


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one filter per input channel, so that it sets no width of its own."""
    if not isinstance(module, nn.Conv2d):
        return False
    return module.groups == module.in_channels == module.out_channels and module.groups > 1


def _place(node: fx.Node) -> str:
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return stack[-1] if stack else node.name


def _prune(conversion: Conversion) -> bool:
    """Take away 1x1 transitions and projections between equal widths; whether there were any."""
    pruned = False
    for stage in conversion.stages:
        if stage.transition == "plain":
            assert stage.x is not None and stage.arrival is not None
            if stage.x.meta["width"] == stage.arrival.meta["width"]:
                stage.arrival.replace_input_with(stage.arrival.all_input_nodes[0], stage.x)
                pruned = True
        for projection in stage.projections:
            entrance = stage.inputs[projection.unit]
            if entrance.meta["width"] == projection.join.meta["width"]:
                _bypass(conversion, projection, entrance)
                pruned = True
        if pruned:
            _erase_unused(stage.graph)
    return pruned


def _bypass(conversion: Conversion, projection: Projection, entrance: fx.Node) -> None:
    """Let the join read the block's input, upsampled where the projection was."""
    way: list[fx.Node] = []  # from the join back to where the projection reads
    user, inner = projection.join, set(projection.nodes)
    while True:
        step = next((n for n in user.all_input_nodes if n in inner or _leads_from(conversion, n, inner)), None)
        if step is None:
            break
        way.append(step)
        user = step
    if user is not projection.join and _is_upsample(conversion, user.all_input_nodes[0]):
        way.append(user.all_input_nodes[0])
    grown = [node for node in way if _is_upsample(conversion, node)]
    projection.join.replace_input_with(way[0], grown[0] if grown else entrance)
    if grown:
        grown[0].replace_input_with(grown[0].all_input_nodes[0], entrance)


def _leads_from(conversion: Conversion, node: fx.Node, inner: set[fx.Node]) -> bool:
    """Whether a node upsamples one of the given nodes."""
    return _is_upsample(conversion, node) and node.all_input_nodes[0] in inner


def _is_upsample(conversion: Conversion, node: fx.Node) -> bool:
    row = operator_of(conversion, node)
    return row is not None and row.kind is Kind.UPSAMPLE


def _erase_unused(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op.startswith("call_") and not node.users:
            graph.erase_node(node)
