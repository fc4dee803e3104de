"""The source's containers that a stage runs, called as one: also where a merge or an upsampling came in between.

`layer3` of a ResNet is such a one: the map that its first block makes is merged with the image's entry before the
others read it. It becomes a `Stage`, a Sequential that is handed the image, the entry and the merge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import fx

from td_compiler.emission.body import write_body
from td_compiler.emission.carry import Carrier
from td_compiler.emission.graph_steps import read_steps
from td_compiler.emission.layout import Doc, Statement, Value, call, flat, substitute
from td_compiler.emission.steps import Step, count_uses
from td_compiler.emission.text import TENSOR, docstring, method
from td_compiler.emission.tree import Tree, own_children
from td_compiler.emission.units import Unit, is_image

if TYPE_CHECKING:
    from td_compiler.network.segments import Segment

__all__ = ["Container", "class_of_containers", "find_containers", "with_entries"]

NEW = ("entry", "merge", "transition", "upsample", "projection")
"""What the conversion puts between the source's layers, by the first name of its path."""

_ROOM = 92  # columns for a call with calls in it
_COUNTING = ("first", "second", "third")


@dataclass(frozen=True)
class _Call:
    """A module that is called as one, at its path, or, without a path, a step that calls a function."""

    path: str
    nodes: tuple[fx.Node, ...]
    unit: Unit | None = None
    inside: tuple[_Call, ...] = ()

    @property
    def units(self) -> Iterator[Unit]:
        """The units that the network calls here: its own, or those that a plain Sequential of them holds."""
        if self.unit is not None:
            yield self.unit
        for each in self.inside:
            yield from each.units

    @property
    def result(self) -> fx.Node:
        return self.nodes[-1] if self.unit is None or self.unit.result is None else self.unit.result

    @property
    def inputs(self) -> list[fx.Node]:
        """The values that it reads and does not make."""
        if self.unit is not None:
            return [value for value in self.unit.arguments if isinstance(value, fx.Node)]
        reads = dict.fromkeys(value for node in self.nodes for value in node.all_input_nodes if value.op != "get_attr")
        return [value for value in reads if value not in self.nodes]

    @property
    def takes_maps_alone(self) -> bool:
        """Whether a layer is called with the maps that it reads and nothing else, such as the mode."""
        layers = self.nodes if self.path and self.unit is None else ()
        return all(list(node.args) == self.inputs and not node.kwargs for node in layers)


@dataclass(frozen=True)
class Container(Unit):
    """A Sequential of the source that has a forward of its own, as it calls other modules between its children.

    Attributes:
        calls: what it does, in order.
        children: the paths of its children, in the order in which it calls them.
    """

    calls: tuple[_Call, ...] = ()
    children: tuple[str, ...] = ()


def find_containers(segments: Sequence[Segment], units: Sequence[Unit], tree: Tree) -> list[Unit]:
    """The units that the network's stages call: those given, or the containers that they are in.

    Containers whose layers simply follow each other are noted in the tree as such.
    """
    owners = {node: unit for unit in units for node in unit.nodes}
    homes: dict[str, set[str]] = defaultdict(set)  # path -> segments that use something at it or below it
    for segment in segments:
        for node in segment.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                for path in _above(f"{node.target}."):
                    homes[path].add(segment.name)
    found: list[Unit] = []
    for segment in segments:
        calls = list(_calls(segment.graph.nodes, owners))
        if segment is not segments[-1]:
            calls = _gather(calls, segment, homes, tree)
        found += [unit for each in calls for unit in each.units]
    return found


def _above(path: str) -> Iterator[str]:
    """The paths of all modules that hold what is at a path."""
    return (path[:end] for end, letter in enumerate(path) if letter == ".")


def _calls(nodes: Iterable[fx.Node], owners: Mapping[fx.Node, Unit]) -> Iterator[_Call]:
    done: set[str] = set()
    for node in nodes:
        unit = owners.get(node)
        if unit is None and node.op.startswith("call_"):
            yield _Call(str(node.target) if node.op == "call_module" else "", (node,))
        elif unit is not None and unit.path not in done:
            done.add(unit.path)
            yield _Call(unit.path, unit.nodes, unit)


def _gather(calls: list[_Call], segment: Segment, homes: Mapping[str, set[str]], tree: Tree) -> list[_Call]:
    """Calls of which those of one container became one, innermost first."""
    free = {n for node in segment.graph.find_nodes(op="get_attr") for n in _above(f"{node.target}.")}
    held = {path for call in calls if call.unit is not None for path in [call.path, *_above(call.path)]}
    paths = {path for call in calls for path in _above(call.path) if path.partition(".")[0] not in NEW}
    for path in sorted(paths, key=lambda path: (-path.count("."), path)):
        if len(homes[path]) > 1 or (path in free and path not in held) or not _is_plain(path, tree):
            continue
        places = [i for i, call in enumerate(calls) if call.path.startswith(f"{path}.")]
        run = calls[places[0] : places[-1] + 1]
        own = tuple(calls[i].path for i in places)
        if own != tuple(f"{path}.{name}" for name in own_children(tree.module(path))):
            continue
        whole = _as_one(path, run, own, tree)
        if whole is not None:
            calls = [*calls[: places[0]], whole, *calls[places[-1] + 1 :]]
    return calls


def _is_plain(path: str, tree: Tree) -> bool:
    return tree.kind(path) in ("sequence", "chain", "dict", "numbers") and not tree.holds_tensors(path)


def _as_one(path: str, run: Sequence[_Call], own: tuple[str, ...], tree: Tree) -> _Call | None:
    if not all(call.takes_maps_alone for call in run):
        return None
    nodes = tuple(node for call in run for node in call.nodes)
    inside = set(nodes)
    follows = all(after.inputs == [before.result] for before, after in pairwise(run)) and len(run[0].inputs) == 1
    alone = all(set(call.result.users) <= inside for call in run[:-1])
    if len(run) == len(own) and follows and alone:
        if tree.kind(path) in ("dict", "numbers"):
            tree.chains.add(path)
        if all(call.unit is None or len(call.unit.arguments) == 1 for call in run):
            return _Call(path, nodes, inside=tuple(run))
    others = dict.fromkeys(call.path for call in run if call.path and call.path not in own)
    others |= dict.fromkeys(path for call in run if call.unit for path in call.unit.arguments if isinstance(path, str))
    roots = [path.partition(".")[0] for path in others]
    if not set(roots) <= set(NEW) or len(set(roots)) < len(roots) or len(own) - _tail(run, own) > len(_COUNTING):
        return None
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    outside = dict.fromkeys(value for call in run for value in call.inputs if value not in inside)
    maps = [value for value in outside if not is_image(value)]
    if len(results) != 1 or results[0] is not run[-1].result or len(maps) > 1:
        return None
    if tree.kind(path) in ("dict", "numbers"):
        tree.chains.add(path)
    arguments: dict[fx.Node | str, str] = {
        **dict.fromkeys(maps, "x"),
        **dict.fromkeys((value for value in outside if is_image(value)), "image"),
        **dict(zip(others, roots, strict=True)),
    }
    base = "Stage" if "merge" in roots else "Growing"
    unit = Container(path, base, nodes, arguments, results[0], calls=tuple(run), children=own)
    return _Call(path, nodes, unit)


def _tail(run: Sequence[_Call], own: Sequence[str]) -> int:
    """How many of the children run last, one after the other, each on the map of the one before alone."""
    count = 0
    for before, after in reversed(list(pairwise(run))):
        plain = after.unit is None or len(after.unit.arguments) == 1
        if after.path not in own or not plain or after.inputs != [before.result]:
            break
        count += 1
    return count


def with_entries(steps: Sequence[Step], results: Sequence[fx.Node]) -> list[Step]:
    """An entry's map, or a map that grows, is written where it is read: in the call of a merge or a container."""
    uses = count_uses(steps, results)
    made: list[Step] = []
    for step in steps:
        while made and not step.members and step.is_unit and uses[made[-1].node] == 1 and made[-1].node in step.inputs:
            inner = made[-1]
            grows = not inner.is_unit and inner.node.op == "call_function" and inner.form == "atom"
            doc = substitute(step.doc, lambda atom, inner=inner: inner.doc if atom == Value(inner.node) else atom)  # type: ignore[misc]
            if inner.members or not (grows or inner.hint == "e") or len(flat(doc)) > _ROOM:
                break
            made.pop()
            step = replace(step, doc=doc, path="")
        made.append(step)
    return made


def _statements(unit: Container, tree: Tree, carrier: Carrier) -> list[Statement]:
    tail = _tail(unit.calls, unit.children)
    lead, own = unit.calls[: len(unit.calls) - tail], unit.children[: len(unit.children) - tail]
    names = dict(zip(own, _COUNTING if len(own) > 1 or tail else ("block",), strict=False))
    unpacked = [*names.values(), *(["*blocks"] if tail else [])]
    given = {**names, **{path: name for path, name in unit.arguments.items() if isinstance(path, str)}}
    steps: list[Step] = []
    for each in lead:
        if not each.path:
            steps += read_steps(each.nodes, tree, carrier)
        else:
            arguments = each.inputs if each.unit is None else list(each.unit.arguments)
            read: list[Doc] = [given[a] if isinstance(a, str) else Value(a) for a in arguments]
            hint = "e" if given[each.path] == "entry" else ""
            steps.append(Step(each.result, call(given[each.path], *read), hint=hint, is_unit=True))
    values = {value: name for value, name in unit.arguments.items() if isinstance(value, fx.Node)}
    fixed = {value for value in values if is_image(value)}
    steps = with_entries(steps, (lead[-1].result,))
    body = write_body(steps, tree, values, (lead[-1].result,), fixed)
    if tail:
        last = body.pop()
        body += [replace(last, prefix="x = ")] if last.doc != "x" else []
        body += [Statement("for block in blocks:"), Statement("x = ", "block(x)", 1), Statement("return ", "x")]
    target = ", ".join(unpacked) if len(unpacked) > 1 else f"({unpacked[0]},)"
    return [Statement(f"{target} = ", "self"), *body]


def _with_inner(units: Iterable[Unit]) -> Iterator[Container]:
    """All containers, those inside others first."""
    for unit in units:
        if isinstance(unit, Container):
            yield from _with_inner(inner for each in unit.calls for inner in each.units)
            yield unit


def _free(unit: Container, statements: Sequence[Statement], taken: set[str]) -> str:
    """A class's name that no other one has: by what its forward does beside a plain one's."""
    base = unit.base
    lines = [flat(statement.doc).replace("entry(image)", "") for statement in statements]
    word = "Outer" if _is_outer(unit) else "Growing" if any("image" in line for line in lines) else "Plain"
    names = (base, word + base, *(f"{word}{base}{i}" for i in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _is_outer(unit: Container) -> bool:
    """Whether the merge is that of a container inside."""
    return any("merge" in inner.arguments.values() for each in unit.calls for inner in each.units)


def class_of_containers(
    units: Sequence[Unit], tree: Tree, carrier: Carrier, taken: set[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The classes of containers, one for all of one forward: text by name, and names by the containers' paths."""
    texts: dict[str, str] = {}
    names: dict[str, str] = {}
    known: dict[object, str] = {}
    for unit in _with_inner(units):
        statements = _statements(unit, tree, carrier)
        key = (unit.base, tuple(unit.arguments.values()), tuple((s.prefix, flat(s.doc), s.level) for s in statements))
        if key not in known:
            name = known[key] = _free(unit, statements, {*taken, *texts})
            kinds = {name: "nn.Module" if isinstance(key, str) else TENSOR for key, name in unit.arguments.items()}
            summary = _OUTER if _is_outer(unit) else _DOCUMENTED[unit.base]
            head = [f"class {name}(nn.Sequential):", *docstring(summary, indent=4), ""]
            texts[name] = "\n".join([*head, *method("forward", kinds, TENSOR, "", statements)])
        names[unit.path] = known[key]
    return texts, names


_OUTER = "Layers that hand the image, its entry and the merge with it on to the blocks among them."
_DOCUMENTED = {
    "Stage": "Blocks of one stage. The map grows to the image's size and is merged with the image's entry on the way.",
    "Growing": "Layers between which the map grows to the image's size.",
}
