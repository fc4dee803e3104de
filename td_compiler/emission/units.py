"""Units that become classes: all of their modules live under their path, and no one else uses those."""

from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from td_compiler.emission.tree import Tree, is_numbered, own_children
from td_compiler.graph.names import free_name, is_attribute
from td_compiler.network.base import Segment

__all__ = ["RESERVED", "Unit", "find_units", "is_image", "unit_of", "used_modules"]

RESERVED = frozenset({"F", "nn", "torch", "math", "self", "image", "x", "e", "super", *dir(builtins)})
"""Names that mean something in emitted source, so that no class or argument there may have them."""

_BASES = {"entry": "Entry", "merge": "Merge", "transition": "Transition"}


@dataclass(frozen=True)
class Unit:
    """A unit that becomes an instance of a class at its own path.

    Attributes:
        path: where the instance stands in the network.
        base: what its class is called, before variants are told apart.
        nodes: its nodes, in order.
        arguments: what its forward takes: values by node, modules of other places by path; and their names in it.
        result: the one value that others use; None for a unit that only holds parameters and layers for others.
    """

    path: str
    base: str
    nodes: tuple[fx.Node, ...]
    arguments: dict[fx.Node | str, str]
    result: fx.Node | None


def unit_of(node: fx.Node) -> str:
    """The path of the unit that a node belongs to, "" for none.

    What only prepares a parameter, such as a view of it, belongs to the unit that reads it.
    """
    if not node.meta.get("unit") and _is_of_parameters(node):
        readers = {unit_of(user) for user in node.users}
        return readers.pop() if len(readers) == 1 else ""
    return str(node.meta.get("unit") or "")


def _is_of_parameters(node: fx.Node) -> bool:
    """Whether a node computes something of parameters alone, such as the shape in which they meet a map."""
    reads = list(node.all_input_nodes)
    for read in reads:
        if read.op in ("placeholder", "call_module"):
            return False
        reads += [other for other in read.all_input_nodes if other not in reads]
    return bool(reads)


def is_image(node: fx.Node) -> bool:
    """Whether a node is the pyramid's level at the segment's scale."""
    return node.op == "placeholder" and node.target == "image"


def used_modules(segments: Sequence[Segment]) -> set[str]:
    """The paths of all modules that the graphs call."""
    return {str(node.target) for segment in segments for node in segment.graph.nodes if node.op == "call_module"}


def find_units(segments: Sequence[Segment], tree: Tree) -> list[Unit]:
    """The units that can be classes, in the order in which they run."""
    users: dict[str, set[str]] = defaultdict(set)  # path prefix -> units that use something below it
    homes: dict[str, set[str]] = defaultdict(set)  # unit -> segments
    for segment in segments:
        for node in segment.graph.nodes:
            homes[unit_of(node)].add(segment.name)
            if node.op in ("call_module", "get_attr"):
                names = str(node.target).split(".")
                owners = {unit_of(user) for user in node.users} if node.op == "get_attr" else {unit_of(node)}
                for end in range(1, len(names) + 1):
                    users[".".join(names[:end])] |= owners
    found = []
    for segment in segments:
        nodes = [node for node in segment.graph.nodes if node.op.startswith("call_")]
        for path in dict.fromkeys(map(unit_of, nodes)):
            if path and users.get(path) == {path} and len(homes[path]) == 1 and _is_namespace(tree, path):
                unit = _unit(path, nodes)
                if unit is not None:
                    found.append(unit)
    return found


def _is_namespace(tree: Tree, path: str) -> bool:
    """Whether a path holds named children that nothing calls as one: a Sequential reads better as it is."""
    module = tree.root.get_submodule(path)
    return tree.is_container(path, module) and not is_numbered(own_children(module))


def _unit(path: str, nodes: list[fx.Node]) -> Unit | None:
    positions = [i for i, node in enumerate(nodes) if unit_of(node) == path]
    if positions != list(range(positions[0], positions[-1] + 1)):
        return None
    own = [nodes[i] for i in positions]
    results = [node for node in own if any(user not in own for user in node.users)]
    outside = [node for member in own for node in _values(member) if node not in own]
    attributes = [node for member in own for node in member.all_input_nodes if node.op == "get_attr"]
    if len(results) != 1 or not all(str(node.target).startswith(f"{path}.") for node in attributes):
        return None
    kinds = (str(node.meta["class_name"]).lstrip("_") for node in own if node.meta.get("class_name"))
    base = next((kind for kind in kinds if is_attribute(kind)), _BASES.get(path.partition(".")[0], "Unit"))
    modules = [str(node.target) for node in own if node.op == "call_module"]
    foreign = [target for target in modules if not target.startswith(f"{path}.")]
    arguments = _name_arguments(list(dict.fromkeys(outside)), list(dict.fromkeys(foreign)), base)
    return Unit(path, base, tuple(own), arguments, results[0])


def _values(node: fx.Node) -> list[fx.Node]:
    return [value for value in node.all_input_nodes if value.op != "get_attr"]


def _name_arguments(values: list[fx.Node], modules: list[str], base: str) -> dict[fx.Node | str, str]:
    """Names that are the same in all units of a kind: `x`, `e` for an entry's map beside it, `image` last."""
    maps = [node for node in values if not is_image(node)]
    images = [node for node in values if is_image(node)]
    if not maps and base != "Entry":
        maps, images = images, []
    arguments: dict[fx.Node | str, str] = {}
    for i, node in enumerate(maps):
        name = "x" if i == 0 else "e" if i == 1 and base == "Merge" else f"x{i + 1}"
        arguments[node] = name
    arguments |= dict.fromkeys(images, "image")
    for path in modules:
        name = path.partition(".")[0]
        name = free_name(name, RESERVED) if is_attribute(name) else "layer"
        taken = sum(other.rstrip("0123456789") == name for other in arguments.values())
        arguments[path] = f"{name}{taken + 1}" if taken else name
    return arguments
