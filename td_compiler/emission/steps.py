"""A graph as a list of steps, and the rewritings that make it read well: whole Sequentials, loops, nested calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import fx

from td_compiler.emission.functions import Form
from td_compiler.emission.layout import Doc, Join, Number, Slice, Value, atoms, call, flat, substitute
from td_compiler.emission.tree import Tree, own_children
from td_compiler.graph.names import is_attribute

__all__ = ["SIZE_NAMES", "Step", "call_sequences", "count_uses", "make_loops", "nest", "part_of"]

SIZE_NAMES = ("n", "c", "h", "w", "size")
"""Hints for values that are sizes; no map is ever called so."""

_MANY = 7  # calls by name, a line each, that are too many


@dataclass(frozen=True)
class Step:
    """One operation: the node whose value it makes, and its expression.

    Attributes:
        form: atom, operator or inplace, see `functions.Form`.
        path: the module that is called on one value and nothing else; "" for anything else.
        members: a loop over children of one container: their paths, in order.
        loop: of a loop over a part of a Sequential: what a layer is called; the expression is a call of that part.
        hint: a name for the value where its first argument's cannot be used again.
        weight: layers with weights in the expression; depth: calls nested in it.
        when: the variants of a block in which it runs, by number, and the attribute that those alone have, which it
            calls; None for all.
    """

    node: fx.Node
    doc: Doc
    form: Form = "atom"
    path: str = ""
    members: tuple[str, ...] = ()
    loop: str = ""
    hint: str = ""
    is_unit: bool = False
    weight: int = 0
    depth: int = 1
    when: tuple[frozenset[int], str] | None = None

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes whose values the expression reads, in reading order."""
        return [atom.node for atom in atoms(self.doc) if isinstance(atom, Value)]


def count_uses(steps: Iterable[Step], results: Sequence[fx.Node]) -> Counter[fx.Node]:
    """How often each value is read, by steps and by the return statement."""
    return Counter([*(node for step in steps for node in step.inputs), *results])


def call_sequences(steps: list[Step], tree: Tree, results: Sequence[fx.Node]) -> list[Step]:
    """Calls of all children of a Sequential in a row become one call of the Sequential, innermost first."""
    parents = {_parent(step.path) for step in steps if "." in step.path}
    ancestors = {path[:end] for path in parents for end in [*_dots(path), len(path)]}
    sequences = [path for path in ancestors if tree.kind(path) in ("sequence", "chain")]
    for path in sorted(sequences, key=lambda path: (-path.count("."), path)):
        children = [f"{path}.{name}" for name in own_children(tree.module(path))]
        uses = count_uses(steps, results)
        start = 0
        while start + len(children) <= len(steps):
            run = steps[start : start + len(children)]
            if [step.path for step in run] == children and _is_chain(run, uses):
                first, last = run[0], run[-1]
                whole = replace(first, node=last.node, doc=call(tree.access(path), Value(first.inputs[0])), path=path)
                whole = replace(whole, is_unit=any(s.is_unit for s in run), weight=max(s.weight for s in run))
                steps = [*steps[:start], whole, *steps[start + len(children) :]]
            start += 1
    return steps


def make_loops(steps: list[Step], tree: Tree, results: Sequence[fx.Node], fixed: set[fx.Node]) -> list[Step]:
    """Calls of several children of one container in a row become a loop over them.

    `fixed` are the values whose names no loop may bind anew.
    """
    uses = count_uses(steps, results)
    made: list[Step] = []
    start = 0
    while start < len(steps):
        end = start + 1
        while (
            end < len(steps)
            and _follows(steps[end - 1], steps[end], tree)
            and _is_chain(steps[end - 1 : end + 1], uses)
        ):
            end += 1
        source = steps[start].inputs[0] if steps[start].path else None
        if end > start + 1 and (source is None or uses[source] > 1 or source in fixed):
            made.append(steps[start])
            start += 1
            continue
        run = steps[start:end]
        if len(run) >= _fewest(run, tree):
            made.append(_loop(run, tree))
        else:
            made += run
        start = end
    return made


def _fewest(run: list[Step], tree: Tree) -> int:
    """How many calls in a row make a loop; a call by name reads well on its own."""
    if run[0].path and tree.kind(parent := _parent(run[0].path)) == "dict":
        names = [_name(step.path) for step in run]
        children = list(own_children(tree.module(parent)))
        start = children.index(names[0])
        if children[start : start + len(names)] != names:
            return len(run) + 1
        if all(map(is_attribute, names)):
            return _MANY
    return 2 if any(step.is_unit for step in run) else 3


def _loop(run: list[Step], tree: Tree) -> Step:
    parent = _parent(run[0].path)
    members = tuple(step.path for step in run)
    if tree.kind(parent) == "numbers":
        return replace(run[0], node=run[-1].node, members=members, is_unit=True)
    start = list(own_children(tree.module(parent))).index(_name(members[0]))
    part = part_of(tree, parent, start, start + len(run), run[0].inputs[0], run[-1].node)
    return replace(part, hint=run[0].hint, members=members)


def part_of(tree: Tree, container: str, start: int, stop: int, source: fx.Node, node: fx.Node) -> Step:
    """The step that runs some layers of a container, from `start` to before `stop`, one after the other."""
    children = own_children(tree.module(container))
    layers = all(tree.is_layer(f"{container}.{name}") for name in children)
    bounds = Slice((Number(start, "split") if start else "", Number(stop, "split") if stop < len(children) else ""))
    access = tree.access(container)
    part = Join((f"list({access}.values())" if tree.kind(container) == "dict" else access, "[", bounds, "]"))
    return Step(node, Join((part, "(", Value(source), ")")), loop="layer" if layers else "block", is_unit=True)


def nest(steps: list[Step], results: Sequence[fx.Node], room: int = 68, depth: int = 3) -> list[Step]:
    """A value that only the next step reads is written inside it, a layer with weights a line."""
    uses = count_uses(steps, results)
    again = {node for node, count in Counter(step.node for step in steps).items() if count > 1}
    made: list[Step] = []
    for step in steps:
        if made and made[-1].when == step.when and made[-1].node not in again and _can_nest(made[-1], step, uses):
            inner = made[-1]
            doc = substitute(step.doc, lambda atom, inner=inner: inner.doc if atom == Value(inner.node) else atom)  # type: ignore[misc]
            total = inner.depth + step.depth
            if total <= depth and inner.weight + step.weight <= 1 and len(flat(doc)) <= room:
                made[-1] = replace(step, doc=doc, weight=inner.weight + step.weight, depth=total, path="")
                continue
        made.append(step)
    return made


def _can_nest(inner: Step, outer: Step, uses: Counter[fx.Node]) -> bool:
    if inner.is_unit or outer.is_unit or inner.form == "inplace" or uses[inner.node] != 1:
        return False
    if inner.node not in outer.inputs:
        return False
    first_operand = outer.inputs[0] is inner.node
    if outer.node.op == "call_module" and inner.form == "atom" and len(set(inner.inputs)) > 1:
        return False  # a call where values meet, such as torch.cat, gets a line of its own before a layer
    if outer.form == "inplace":
        return not first_operand and inner.form == "atom"
    if inner.form == "operator":
        return outer.node.op == "call_module" or (outer.form == "atom" and not _is_receiver(outer, inner.node))
    return outer.form == "atom" or not _is_power(outer)


def _is_receiver(outer: Step, node: fx.Node) -> bool:
    """Whether a node's value stands before a dot or a bracket, where an operator would need parentheses."""
    return isinstance(outer.doc, Join) and any(
        node is a.node for a in atoms(outer.doc.parts[0]) if isinstance(a, Value)
    )


def _is_power(step: Step) -> bool:
    return isinstance(step.doc, Join) and "**" in step.doc.parts


def _is_chain(run: list[Step], uses: Counter[fx.Node]) -> bool:
    return all(uses[before.node] == 1 and after.inputs == [before.node] for before, after in pairwise(run))


def _follows(before: Step, after: Step, tree: Tree) -> bool:
    """Whether a loop can go from one step to the next: children of one container, in its order if it is numbered."""
    parent = _parent(before.path)
    if not parent or not after.path or parent != _parent(after.path):
        return False
    kind = tree.kind(parent)
    if kind == "sequence":
        return int(_name(after.path)) == int(_name(before.path)) + 1
    return kind in ("dict", "numbers")


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _dots(path: str) -> list[int]:
    return [i for i, letter in enumerate(path) if letter == "."]
