"""Places in a Sequential for what the source has there and the passes read as functions, such as a permutation.

So its layers keep their numbers, it is called as one, and hooks on it fire.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import fx, nn

from td_compiler.graph.notes import plan
from td_compiler.network.segments import Segment

__all__ = ["filled"]

Part = TypeVar("Part")


def filled(parts: Mapping[str, Part], segments: Sequence[Segment]) -> dict[str, Part | nn.Module]:
    """Parts by path, with an empty module wherever a function alone keeps a Sequential from being whole."""
    made: dict[str, Part | nn.Module] = dict(parts)
    places: dict[str, list[str]] = defaultdict(list)
    for path in _functions(parts, segments):
        parent, _, name = path.rpartition(".")
        if parent and name.isdecimal():
            places[parent].append(path)
    for parent, paths in places.items():
        inside = [path for path in made if path.startswith(f"{parent}.")]
        names = list(dict.fromkeys(_child(path, parent) for path in inside))
        wanted = [str(i) for i in range(len(names) + len(paths))]
        both = sorted([*inside, *paths], key=lambda path: _number(path, parent))
        own = list(dict.fromkeys(_child(path, parent) for path in both))
        if names and own == wanted and names == [name for name in wanted if name in names]:
            before = list(made)
            start = before.index(inside[0])
            order = [*before[:start], *both, *(path for path in before[start:] if path not in inside)]
            made = {path: made[path] if path in made else nn.Module() for path in order}
    return made


def _child(path: str, parent: str) -> str:
    """The name of the parent's child that a path leads through."""
    return path[len(parent) + 1 :].partition(".")[0]


def _number(path: str, parent: str) -> int:
    name = _child(path, parent)
    return int(name) if name.isdecimal() else -1


def _functions(parts: Mapping[str, object], segments: Sequence[Segment]) -> list[str]:
    """The paths of the source's modules that are functions of one map now, called once and in one piece."""
    taken = {path[:end] for path in parts for end in [*_dots(path), len(path)]}
    found: list[str] = []
    many: set[str] = set()
    for segment in segments:
        nodes = [node for node in segment.graph.nodes if node.op.startswith("call_")]
        places: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(nodes):
            for path, _ in plan(node).homes:
                if path not in taken:
                    places[path].append(i)
        for path, own in places.items():
            many |= {path} & set(found)
            inside = nodes[own[0] : own[-1] + 1]
            if len(inside) == len(own) and _is_one(inside):
                found.append(path)
            else:
                many.add(path)
    return [path for path in found if path not in many]


def _is_one(nodes: Sequence[fx.Node]) -> bool:
    own = set(nodes)
    reads = {value for node in nodes for value in node.all_input_nodes if value not in own}
    results = [node for node in nodes if any(user not in own for user in node.users)]
    plain = all(node.op != "call_module" for node in nodes) and all(value.op != "get_attr" for value in reads)
    return plain and len(reads) == 1 and len(results) == 1


def _dots(path: str) -> list[int]:
    return [i for i, letter in enumerate(path) if letter == "."]
