"""Units that become classes: all of their modules live under their path, and no one else uses those."""

from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, zip_longest

import torch
from torch import fx

from td_compiler.emission.tree import Tree, is_numbered, own_children
from td_compiler.graph.names import camel_case, free_name, is_attribute
from td_compiler.graph.notes import plan
from td_compiler.network.segments import Segment

__all__ = ["RESERVED", "Unit", "find_units", "is_image", "unit_of", "used_modules", "with_inner"]

RESERVED = frozenset({"F", "Tensor", "nn", "torch", "math", "self", "image", "x", "e", "super", *dir(builtins)})
"""Names that mean something in emitted source, so that no class or argument there may have them."""

_BASES = {"entry": "Entry", "merge": "Merge", "transition": "Transition"}
_CONTAINERS = {"Sequential", "ModuleList", "ModuleDict"}


@dataclass(frozen=True)
class Unit:
    """A unit that becomes an instance of a class at its own path.

    Attributes:
        path: where the instance stands in the network.
        base: what its class is called, before variants are told apart.
        nodes: its nodes, in order.
        arguments: what its forward takes: values by node, modules of other places by path; and their names in it.
        result: the one value that others use; None for a unit that only holds parameters and layers for others.
        inner: the units inside it, at paths below its own, that are called as one each.
    """

    path: str
    base: str
    nodes: tuple[fx.Node, ...]
    arguments: dict[fx.Node | str, str]
    result: fx.Node | None
    inner: tuple[Unit, ...] = ()


def with_inner(units: Sequence[Unit]) -> Iterator[Unit]:
    """Units and all that are inside them, inner ones first."""
    for unit in units:
        yield from with_inner(unit.inner)
        yield unit


def unit_of(node: fx.Node) -> str:
    """The path of the unit that a node belongs to, "" for none.

    What only prepares a parameter, such as a view of it, belongs to the unit that reads it.
    """
    if not plan(node).unit and _is_of_parameters(node):
        readers = {unit_of(user) for user in node.users}
        return readers.pop() if len(readers) == 1 else ""
    return plan(node).unit


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
    """The units that can be classes, those inside others with them, in the order in which they run.

    Containers that a `Sequential` with names of its own was in the source are noted as such in the tree.
    """
    finder = _Finder(tree)
    for segment in segments:
        finder.read(segment)
    found = []
    for segment in segments:
        found += finder.find([node for node in segment.graph.nodes if node.op.startswith("call_")], frozenset())
    return found


class _Finder:
    """Which modules of the source the nodes ran in, and which of those can be called as one."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._homes: dict[fx.Node, dict[str, str]] = {}  # node -> path -> class name, outermost first
        self._segments: dict[str, set[str]] = defaultdict(set)  # path -> segments
        self._shared: set[str] = set()  # paths below which something is used from outside

    def read(self, segment: Segment) -> None:
        """Take note of what the nodes of a segment use."""
        nodes = list(segment.graph.nodes)
        for node in nodes:
            if node.op.startswith("call_"):
                self._homes[node] = self._homes_of(node)
                for path in self._homes[node]:
                    self._segments[path].add(segment.name)
        for node in nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            names = str(node.target).split(".")
            for user in [node] if node.op == "call_module" else node.users:
                homes = self._homes.get(user, {})
                paths = (".".join(names[:end]) for end in range(1, len(names) + 1))
                self._shared.update(path for path in paths if path not in homes)

    def _homes_of(self, node: fx.Node) -> dict[str, str]:
        unit = unit_of(node)
        homes = {unit: plan(node).class_name.lstrip("_")} if unit else {}
        return homes | {path: kind.lstrip("_") for path, kind in plan(node).homes}

    def find(self, nodes: list[fx.Node], above: frozenset[str], within: str = "") -> list[Unit]:
        """The units among nodes, outermost, below the path `within`; `above`: paths of units that hold all nodes."""
        places: dict[str, list[int]] = {}
        for i, node in enumerate(nodes):
            for path in self._homes[node]:
                if path not in above and (not within or path.startswith(f"{within}.")):
                    places.setdefault(path, []).append(i)
        found: list[tuple[int, Unit]] = []
        taken: set[int] = set()
        for path in sorted(places, key=lambda path: path.count(".")):
            kind = next((kind for i in places[path] if (kind := self._homes[nodes[i]][path])), "")
            if not self._is_whole(path, kind) or not taken.isdisjoint(places[path]):
                continue
            first, last = self._span(nodes, places[path], above)
            own = nodes[first:last]
            unit = self._unit(path, kind, own, above) if own else None
            if unit is not None:
                found.append((first, unit))
                taken.update(range(first, last))
        return [unit for _, unit in sorted(found, key=lambda pair: pair[0])]

    def _is_whole(self, path: str, kind: str) -> bool:
        """Whether a path holds children that nothing else uses; a Sequential reads better as it is."""
        if path in self._shared or len(self._segments[path]) != 1 or not self._tree.has(path):
            return False
        module = self._tree.module(path)
        if not self._tree.is_container(path, module):
            return False
        if is_numbered(own_children(module)):
            return bool(kind) and kind not in _CONTAINERS and not self._tree.holds_tensors(path)
        if kind == "Sequential":
            self._tree.chains.add(path)
            return False
        return True

    def _span(self, nodes: list[fx.Node], places: list[int], above: frozenset[str]) -> tuple[int, int]:
        """First and last + 1 of a unit's nodes, with what was put between them, such as an upsampling; 0, 0: none."""
        first, last = places[0], places[-1] + 1
        if last - first > len(places):
            own, inside = set(places), set(nodes[first:last])
            for i in range(first, last):
                node = nodes[i]
                if i not in own and not (above.issuperset(self._homes[node]) and inside.issuperset(node.users)):
                    return 0, 0
        if above and nodes[first].target is torch.cat and last - first > 1:
            first += 1  # what a layer of a dense block reads: a list that is longer for every layer
        return first, last

    def _unit(self, path: str, kind: str, own: list[fx.Node], above: frozenset[str]) -> Unit | None:
        inside = set(own)
        results = [node for node in own if any(user not in inside for user in node.users)]
        outside = [value for node in own for value in _values(node) if value not in inside]
        attributes = [node for member in own for node in member.all_input_nodes if node.op == "get_attr"]
        if len(results) != 1 or not all(str(node.target).startswith(f"{path}.") for node in attributes):
            return None
        base = kind if is_attribute(kind) and kind not in _CONTAINERS else ""
        base = base or _BASES.get(path.partition(".")[0]) or _camel(path) or "Unit"
        modules = [str(node.target) for node in own if node.op == "call_module"]
        foreign = [target for target in modules if not target.startswith(f"{path}.")]
        arguments = _name_arguments(list(dict.fromkeys(outside)), list(dict.fromkeys(foreign)), base, path)
        return Unit(path, base, tuple(own), arguments, results[0], tuple(self.find(own, above | {path}, path)))


def _camel(path: str) -> str:
    """A class's name from the last word of a path that is none of numbers alone: `layer3.0.downsample`: Downsample."""
    words = [name for name in path.split(".") if is_attribute(name)]
    return camel_case(words[-1]) if words else ""


def _values(node: fx.Node) -> list[fx.Node]:
    return [value for value in node.all_input_nodes if value.op != "get_attr"]


def _name_arguments(values: list[fx.Node], modules: list[str], base: str, path: str) -> dict[fx.Node | str, str]:
    """Names that are the same in all units of a kind: `x`, `e` for an entry's map beside it, `image` last.

    A module is called by the first word of its path that is not in the unit's own.
    """
    maps = [node for node in values if not is_image(node)]
    images = [node for node in values if is_image(node)]
    if not maps and base != "Entry":
        maps, images = images, []
    arguments: dict[fx.Node | str, str] = {}
    for i, node in enumerate(maps):
        name = "x" if i == 0 else "e" if i == 1 and base == "Merge" else f"x{i + 1}"
        arguments[node] = name
    for module in modules:
        name = _first_own_word(module, path)
        name = free_name(name, RESERVED) if is_attribute(name) else "layer"
        taken = set(arguments.values())
        candidates = chain([name], (f"{name}{i}" for i in count(2)))
        arguments[module] = next(each for each in candidates if each not in taken)
    return arguments | dict.fromkeys(images, "image")


def _first_own_word(path: str, other: str) -> str:
    """The first word of a path in which it parts with another one."""
    pairs = zip_longest(path.split("."), other.split("."))
    return next((word for word, beside in pairs if word != beside), "") or ""
