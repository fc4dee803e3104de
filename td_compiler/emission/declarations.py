"""The classes of units and the lines of `__init__`: every module of the network at the path that it has."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from torch import fx, nn

from td_compiler.emission.align import Body
from td_compiler.emission.arguments import CLASSES, Arguments
from td_compiler.emission.body import prepare
from td_compiler.emission.by_number import by_number
from td_compiler.emission.carry import Carrier, Importer
from td_compiler.emission.classes import Declaration, Draft, SharedClass
from td_compiler.emission.constructors import Constructors, declare_tensor
from td_compiler.emission.dense import MAPS
from td_compiler.emission.drop_rates import fold_rates
from td_compiler.emission.families import family, fold_runs, numbered
from td_compiler.emission.graph_steps import read_steps
from td_compiler.emission.layout import Doc, Group, Join, Number, Repeat, Statement, call, flat, literal
from td_compiler.emission.leaves import is_of_torch, is_own, plain_layer, trace_forward
from td_compiler.emission.sharing import Sharer
from td_compiler.emission.tree import Tree, is_bare, is_numbered, own_children
from td_compiler.emission.units import Unit, is_image, with_inner
from td_compiler.graph.laws import Law
from td_compiler.graph.names import is_attribute
from td_compiler.layers.numbered import Numbered
from td_compiler.layers.steps import TrainingStep

__all__ = ["Declarer"]


class Declarer:
    """Writes what stands in `__init__`.

    Attributes:
        classes: the emitted classes, what is used before what uses it.
        containers: the classes of containers that have a forward of their own, by the containers' paths.
    """

    def __init__(
        self, tree: Tree, carrier: Carrier, arguments: Arguments, taken: set[str], laws: Mapping[str, Law]
    ) -> None:
        self.classes: list[SharedClass] = []
        self.containers: dict[str, str] = {}
        self._tree = tree
        self._carrier = carrier
        self._arguments = arguments
        self._constructors = Constructors(carrier)
        self._instances: dict[str, Doc] = {}
        self._around: list[list[Unit]] = []
        self._sharer = Sharer(taken)
        self._laws = laws

    def add_units(self, units: list[Unit]) -> None:
        """Make the classes of units, of layers that are none of torch's, and of containers that hold parameters."""
        layers = [] if isinstance(self._carrier, Importer) else self._foreign_layers()
        self._tree.classes |= {layer.path for layer in layers}
        self._add(layers)
        units = list(with_inner(units))
        paths = {unit.path for unit in units}
        holders = [
            Unit(path, "Parameters", (), {}, None)
            for path, module in self._tree.root.named_modules()
            if path not in {"", *paths} and self._tree.is_container(path, module) and is_bare(module)
        ]
        self._tree.classes |= paths | {holder.path for holder in holders}
        around = [holder for holder in holders if any(path.startswith(f"{holder.path}.") for path in paths)]
        within = [holder for holder in holders if holder not in around]
        self._around = _innermost_first(around)
        for together in [*_innermost_first(within), *_by_kind(units)]:
            self._add(together)

    def add_around(self) -> None:
        """Make the classes of containers with parameters beside units, once those of other containers are known."""
        for together in self._around:
            self._add(together)

    def _foreign_layers(self) -> list[Unit]:
        """The layers that are written as what their forward computes."""
        found = []
        for path, module in self._tree.root.named_modules():
            if isinstance(module, TrainingStep):
                found.append(_layer_unit(path, "InTraining", module.graph))
            elif self._tree.is_layer(path) and not is_own(type(module)) and not is_of_torch(type(plain_layer(module))):
                graph = trace_forward(module)
                if graph is not None:
                    found.append(_layer_unit(path, type(module).__name__.lstrip("_"), graph))
        return found

    def _add(self, units: list[Unit]) -> None:
        for shared in self._sharer.share(map(self._draft, units)):
            self.classes.append(shared)
            self._instances |= shared.instances

    def _draft(self, unit: Unit) -> Draft:
        declarations = tuple(self.declare(unit.path))
        tree = self._tree.below(unit.path)
        if unit.result is None:
            return Draft(unit, declarations, None, tree)
        modules = {path: name for path, name in unit.arguments.items() if isinstance(path, str)}
        values = {node: name for node, name in unit.arguments.items() if not isinstance(node, str)}
        steps = read_steps(unit.nodes, tree, self._carrier, units=unit.inner, start=f"{unit.path}.", given=modules)
        fixed = {node for node, name in values.items() if is_image(node) and name == "image"}
        body = Body(tuple(prepare(steps, tree, (unit.result,), fixed)), values, unit.result)
        if any(step.loop == MAPS and flat(step.doc).startswith("xself.children()") for step in body.steps):
            declarations = tuple(self._with_families(unit.path))
        lead: tuple[Statement, ...] = ()
        if isinstance(self._tree.module(unit.path), TrainingStep):
            lead = (Statement("if not self.training:"), Statement("return ", next(iter(values.values())), 1))
        return Draft(unit, declarations, body, tree, lead)

    def declare(self, path: str, skip: frozenset[str] = frozenset()) -> list[Declaration]:
        """The children, parameters and buffers of the module at a path, but for those to skip."""
        module = self._tree.module(path)
        start = f"{path}." if path else ""
        lines = []
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            persistent = name not in module._non_persistent_buffers_set
            if tensor is not None:
                law, in_place = self._laws.get(start + name), isinstance(self._carrier, Importer)
                weight = module._parameters.get("weight") if name == "bias" else None
                kind, doc = declare_tensor(
                    tensor, start + name, law, weight=weight, persistent=persistent, in_place=in_place
                )
                doc = self._arguments.mark(path, doc)
                lines.append(Declaration(name, kind if persistent else "constant", doc))
        for name, child in own_children(module).items():
            if name not in skip:
                lines.append(Declaration(name, "module", self._expression(start + name, child)))
        return lines

    def _with_families(self, path: str) -> list[Declaration]:
        """The same, children that are named by number and differ in that alone as one declaration."""
        lines = self.declare(path)
        modules = [line for line in lines if line.kind == "module"]
        found = numbered([line.name for line in modules])
        item = family([line.doc for line in modules]) if found and len(modules) > 1 else None
        if item is None or found is None:
            return lines
        word, first = found
        count = Number(len(modules), "depth")
        lines = [line for line in lines if line.kind != "module"]
        return [*lines, Declaration(word, "family", Join((Number(first), Repeat(item, count, True))))]

    def classifier(self) -> dict[str, Doc]:
        """The layers that the number of classes is a number of, by path, in the order in which they run."""
        paths = [path for path, roles in self._arguments.roles.items() if CLASSES in roles.values()]
        return {path: self._expression(path, self._tree.module(path)) for path in reversed(paths)}

    def _expression(self, path: str, module: nn.Module) -> Doc:
        if path in self._instances:
            return self._instances[path]
        if not self._tree.is_container(path, module):
            return self._arguments.mark(path, self._constructors.write(self._arguments.layer(path, module), path))
        children = {name: self._expression(f"{path}.{name}", child) for name, child in own_children(module).items()}
        kind = self.containers.get(path, "nn.Sequential")
        if is_numbered(children):
            return Join((kind, Group("(", tuple(fold_runs(fold_rates(list(children.values())))), ")")))
        if path in self._tree.chains:
            pairs = tuple(Group("(", (literal(name), child), ")", is_tuple=True) for name, child in children.items())
            return call(kind, call("OrderedDict", Group("[", pairs, "]")))
        if self._tree.kind(path) == "numbers":
            return by_number(self._carrier.carry(Numbered, path), children)
        items = tuple(Join((literal(name), ": ", child)) for name, child in children.items())
        return call("nn.ModuleDict", Group("{", items, "}")) if items else call("nn.ModuleDict")


def _innermost_first(units: list[Unit]) -> list[list[Unit]]:
    """Units that hold no other, then those that hold only such, and so on."""
    heights: dict[str, int] = {}
    for path in sorted((unit.path for unit in units), key=lambda path: -path.count(".")):
        heights[path] = 1 + max((heights[other] for other in heights if other.startswith(f"{path}.")), default=0)
    units = sorted(units, key=lambda unit: heights[unit.path])
    return [list(same) for _, same in groupby(units, key=lambda unit: heights[unit.path])]


def _by_kind(units: list[Unit]) -> list[list[Unit]]:
    """The units of one kind together, what is inside others first; a kind that holds itself comes level by level."""
    inside: dict[str, set[str]] = {}  # base -> bases of what its units hold, at any depth
    for unit in units:
        inside.setdefault(unit.base, set()).update(inner.base for inner in with_inner(unit.inner))
    levels = dict.fromkeys((unit.path for unit in units), 0)
    by_base: dict[str, list[Unit]] = {}
    for unit in units:
        by_base.setdefault(unit.base, []).append(unit)
    changed = True
    while changed:
        before = dict(levels)
        for base, same in by_base.items():
            own = [1 + max((levels[inner.path] for inner in unit.inner), default=-1) for unit in same]
            recursive = base in inside[base] or any(base in inside[other] for other in inside[base])
            for unit, level in zip(same, own, strict=True):
                levels[unit.path] = level if recursive else max(own)
        changed = levels != before
    ordered = sorted(units, key=lambda unit: levels[unit.path])
    return [list(same) for _, same in groupby(ordered, key=lambda unit: levels[unit.path])]


def _layer_unit(path: str, name: str, graph: fx.Graph) -> Unit:
    arguments: dict[str | fx.Node, str] = {node: str(node.target) for node in graph.find_nodes(op="placeholder")}
    if len(arguments) == 1:
        arguments = dict.fromkeys(arguments, "x")
    result = graph.output_node().args[0]
    assert isinstance(result, fx.Node)
    nodes = tuple(node for node in graph.nodes if node.op not in {"placeholder", "output"})
    return Unit(path, name if is_attribute(name) else "Layer", nodes, arguments, result)
