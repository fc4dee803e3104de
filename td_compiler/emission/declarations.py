"""The classes of units and the lines of `__init__`: every module of the network at the path that it has."""

from __future__ import annotations

from itertools import groupby

from torch import nn

from td_compiler.emission.body import write_body
from td_compiler.emission.carry import Carrier
from td_compiler.emission.constructors import Constructors, declare_tensor
from td_compiler.emission.graph_steps import read_steps
from td_compiler.emission.layout import WIDTH, Doc, Group, Join, call, flat, literal
from td_compiler.emission.sharing import Declaration, Draft, SharedClass, share
from td_compiler.emission.tree import Tree, holds_tensors, is_numbered, own_children
from td_compiler.emission.units import Unit, is_image

__all__ = ["Declarer"]


class Declarer:
    """Writes what stands in `__init__`.

    Attributes:
        classes: the emitted classes, what is used before what uses it.
    """

    def __init__(self, tree: Tree, carrier: Carrier, taken: set[str]) -> None:
        self.classes: list[SharedClass] = []
        self._tree = tree
        self._carrier = carrier
        self._constructors = Constructors(carrier)
        self._instances: dict[str, Doc] = {}
        self._taken = taken

    def add_units(self, units: list[Unit]) -> None:
        """Make the classes of units, and of containers that need one because parameters hang directly at them."""
        paths = {unit.path for unit in units}
        holders = [
            Unit(path, type(module).__name__.lstrip("_"), (), {}, None)
            for path, module in self._tree.root.named_modules()
            if path not in {"", *paths} and self._tree.is_container(path, module) and holds_tensors(module)
        ]
        self._tree.classes |= paths | {holder.path for holder in holders}
        holders.sort(key=lambda holder: -holder.path.count("."))
        for _, same_depth in groupby(holders, key=lambda holder: holder.path.count(".")):
            self._add(list(same_depth))
        self._add(units)

    def _add(self, units: list[Unit]) -> None:
        for shared in share(map(self._draft, units), self._taken):
            self._taken.add(shared.name)
            self.classes.append(shared)
            self._instances |= shared.instances

    def _draft(self, unit: Unit) -> Draft:
        declarations = tuple(self.declare(unit.path))
        if unit.result is None:
            return Draft(unit, declarations, ())
        tree = self._tree.below(unit.path)
        modules = {path: name for path, name in unit.arguments.items() if isinstance(path, str)}
        values = {node: name for node, name in unit.arguments.items() if not isinstance(node, str)}
        steps = read_steps(unit.nodes, tree, self._carrier, start=f"{unit.path}.", given=modules)
        fixed = {node for node, name in values.items() if is_image(node) and name == "image"}
        return Draft(unit, declarations, tuple(write_body(steps, tree, values, unit.result, fixed)))

    def declare(self, path: str, skip: frozenset[str] = frozenset()) -> list[Declaration]:
        """The children, parameters and buffers of the module at a path, but for those to skip."""
        module = self._tree.root.get_submodule(path)
        start = f"{path}." if path else ""
        lines = []
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            persistent = name not in module._non_persistent_buffers_set
            if tensor is not None:
                kind, doc = declare_tensor(tensor, start + name, persistent=persistent)
                lines.append(Declaration(name, kind if persistent else "constant", doc))
        for name, child in own_children(module).items():
            if name not in skip:
                lines.append(Declaration(name, "module", self._expression(start + name, child)))
        return lines

    def _expression(self, path: str, module: nn.Module) -> Doc:
        if path in self._instances:
            return self._instances[path]
        if not self._tree.is_container(path, module):
            return self._constructors.write(module, path)
        children = {name: self._expression(f"{path}.{name}", child) for name, child in own_children(module).items()}
        if is_numbered(children):
            return Join(("nn.Sequential", Group("(", tuple(_fold_runs(list(children.values()))), ")")))
        items = tuple(Join((literal(name), ": ", child)) for name, child in children.items())
        return call("nn.ModuleDict", Group("{", items, "}")) if items else call("nn.ModuleDict")


def _fold_runs(items: list[Doc]) -> list[Doc]:
    """Three or more equal items in a row are written once: `*[Block(64) for _ in range(5)]`."""
    folded: list[Doc] = []
    for item, run in groupby(items):
        count = len(list(run))
        line = Join(("*[", item, f" for _ in range({count})]"))
        folded += [line] if count > 2 and len(flat(line)) < WIDTH - 13 else [item] * count
    return folded
