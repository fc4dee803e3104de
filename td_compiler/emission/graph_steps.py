"""Reads the nodes of a graph as steps; a unit that has a class of its own becomes one step."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import fx

from td_compiler.emission.carry import Carrier
from td_compiler.emission.functions import write_call
from td_compiler.emission.layout import Atom, Doc, Value, call, literal, substitute
from td_compiler.emission.steps import SIZE_NAMES, Step
from td_compiler.emission.tree import Tree
from td_compiler.emission.units import Unit, unit_of

__all__ = ["read_steps"]

_SHORTCUTS = ("downsample", "shortcut", "proj", "skip")


def read_steps(
    nodes: Iterable[fx.Node],
    tree: Tree,
    carrier: Carrier,
    *,
    units: Iterable[Unit] = (),
    start: str = "",
    given: Mapping[str, str] | None = None,
) -> list[Step]:
    """The steps of nodes, as a method of the tree's root would write them.

    Args:
        nodes: the nodes, in order.
        tree: the tree whose root is `self`.
        carrier: takes the definitions that the steps need.
        units: those that are called as one.
        start: the root's path in the network, with a dot behind, which targets begin with.
        given: modules that the method gets as arguments: their names by path.
    """
    given = given or {}
    packed = {node: unit for unit in units for node in unit.nodes}
    steps = []
    for node in nodes:
        if node in packed:
            if node is packed[node].nodes[-1]:
                steps.append(_unit_step(packed[node], tree, start, given))
        elif node.op == "call_module" and str(node.target) in given:
            steps.append(Step(node, _call(given[str(node.target)], node)))
        elif node.op == "call_module":
            steps.append(_module_step(node, str(node.target).removeprefix(start), tree))
        elif node.op in ("call_function", "call_method"):
            doc, form = write_call(node, carrier)
            is_access = node.target in (builtins.getattr, operator.getitem)
            hint = _size_hint(node) or _hint(unit_of(node))
            steps.append(Step(node, doc, form, hint=hint, depth=0 if is_access else 1))

    def named(atom: Atom) -> Doc:
        if isinstance(atom, Value) and atom.node.op == "get_attr":
            return tree.access(str(atom.node.target).removeprefix(start))
        return atom

    return [replace(step, doc=substitute(step.doc, named)) for step in steps]


def _call(function: str, node: fx.Node) -> Doc:
    keywords = {name: literal(value) for name, value in node.kwargs.items()}
    return call(function, *map(literal, node.args), **keywords)


def _module_step(node: fx.Node, path: str, tree: Tree) -> Step:
    only_argument = len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node)
    has_weights = any(parameter.dim() > 1 for parameter in tree.module(path).parameters())
    return Step(
        node,
        _call(tree.access(path), node),
        path=path if only_argument else "",
        hint=_hint(f"{unit_of(node)} {path}"),
        weight=int(has_weights),
    )


def _unit_step(unit: Unit, tree: Tree, start: str, given: Mapping[str, str]) -> Step:
    assert unit.result is not None
    own = unit.path.removeprefix(start)
    arguments = [
        Value(argument)
        if not isinstance(argument, str)
        else given.get(argument) or tree.access(argument.removeprefix(start))
        for argument in unit.arguments
    ]
    path = own if list(unit.arguments.values()) in (["x"], ["image"]) else ""
    return Step(unit.result, call(tree.access(own), *arguments), path=path, hint=_hint(own), is_unit=not start)


def _size_hint(node: fx.Node) -> str:
    """A name for a map's size, or for one of its four entries; "" for other values."""
    is_size = node.op == "call_method" and node.target == "size" and len(node.args) == 1
    if is_size or (node.target is builtins.getattr and node.args[1] == "shape"):
        return "size"
    source, index = node.args if node.target is operator.getitem else (None, None)
    if isinstance(source, fx.Node) and _size_hint(source) == "size" and index in (0, 1, 2, 3):
        return SIZE_NAMES[int(str(index))]
    return ""


def _hint(path: str) -> str:
    if path.startswith("entry."):
        return "e"
    return "shortcut" if any(word in path for word in _SHORTCUTS) else ""
