"""Steps as statements: values get names, and a name is used again where its value is read for the last time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from td_compiler.emission.dense import MAPS, collect
from td_compiler.emission.layout import Doc, Group, Join, Statement, Value, atoms, call, substitute
from td_compiler.emission.steps import SIZE_NAMES, Step, call_sequences, make_loops, nest
from td_compiler.emission.tree import Tree

__all__ = ["prepare", "write_body", "write_steps"]

_POOL = ("y", "z", "u", "v", "w")


def write_body(
    steps: list[Step], tree: Tree, arguments: Mapping[fx.Node, str], results: tuple[fx.Node, ...], fixed: set[fx.Node]
) -> list[Statement]:
    """The statements of a function that takes the values `arguments` by name and returns those of `results`.

    `fixed` are arguments whose names keep their value throughout, such as the image.
    """
    return write_steps(prepare(steps, tree, results, fixed), tree, arguments, results, fixed)


def prepare(steps: list[Step], tree: Tree, results: tuple[fx.Node, ...], fixed: set[fx.Node]) -> list[Step]:
    """Calls of whole Sequentials, and loops, in place of calls of their children."""
    return make_loops(collect(call_sequences(steps, tree, results), tree, results), tree, results, fixed)


def write_steps(
    steps: list[Step], tree: Tree, arguments: Mapping[fx.Node, str], results: tuple[fx.Node, ...], fixed: set[fx.Node]
) -> list[Statement]:
    """Steps as statements; where several steps make the value of one node, which of them does is told by `when`."""
    steps = nest(steps, results)
    last_use = {node: i for i, step in enumerate(steps) for node in (*step.inputs, step.node)}
    read = {node for step in steps for node in step.inputs} | set(results)
    last_use.update(dict.fromkeys(results, len(steps)))
    names = dict(arguments)
    kept = {names[node] for node in fixed if node in names}
    statements: list[Statement] = []
    for i, step in enumerate(steps):
        live = kept | {name for node, name in names.items() if last_use.get(node, -1) > i}
        dying = [node for node in step.inputs if last_use[node] == i]
        if step.node not in read:
            statements.append(Statement("", _named(step.doc, names), when=step.when))
            continue
        if step.form == "inplace":  # the first operand's name is bound anew before the others are read
            first, *others = _operands(step)
            dying = [node for node in first if node in dying]
            live |= {names[node] for operand in others for node in operand}
        target = names[step.node] if step.node in names else _target(step, names, live, dying)
        is_last = i == len(steps) - 1 and results == (step.node,) and not step.when
        made = _statements(step, tree, names, target, is_last=is_last)
        statements += [replace(statement, when=step.when) for statement in made]
        names[step.node] = target
    if not statements or not statements[-1].prefix.startswith("return"):
        statements.append(Statement("return ", ", ".join(names[result] for result in results)))
    return statements


def _operands(step: Step) -> list[list[fx.Node]]:
    """The nodes that the first operand of an in-place operator reads, and those that the second reads."""
    assert isinstance(step.doc, Join)
    return [[atom.node for atom in atoms(part) if isinstance(atom, Value)] for part in step.doc.parts[::2]]


def _target(step: Step, names: Mapping[fx.Node, str], live: set[str], dying: list[fx.Node]) -> str:
    if step.hint in SIZE_NAMES and step.hint not in live:
        return step.hint
    for node in dying:
        if names[node] not in live and names[node] not in SIZE_NAMES:
            return names[node]
    pool = ["x", *filter(None, [step.hint]), *_POOL]
    return next(name for name in [*pool, *(f"y{i}" for i in range(2, 2 + len(names)))] if name not in live)


def _statements(step: Step, tree: Tree, names: Mapping[fx.Node, str], target: str, *, is_last: bool) -> list[Statement]:
    if step.loop == MAPS:
        assert isinstance(step.doc, Join)
        source, layers, inner, joined, *apart = step.doc.parts
        made = [Statement("", call(f"{MAPS}.append", inner), 1)]
        for value in apart:
            name = _named(value, names)
            made = [Statement(f"{name} = ", call("layer", name), 1), Statement("", call(f"{MAPS}.append", name), 1)]
        return [
            Statement(f"{MAPS} = ", Group("[", (_named(source, names),), "]")),
            Statement("for layer in ", Join((layers, ":"))),
            *made,
            Statement("return " if is_last else f"{target} = ", joined),
        ]
    if step.loop:
        assert isinstance(step.doc, Join)
        part, _, source, _ = step.doc.parts
        alias = [] if _named(source, names) == target else [Statement(f"{target} = ", _named(source, names))]
        head = Statement(f"for {step.loop} in ", Join((_named(part, names), ":")))
        return [*alias, head, Statement(f"{target} = ", f"{step.loop}({target})", 1)]
    if step.members:
        return _loop(step, tree, target)
    if step.form == "inplace":
        assert isinstance(step.doc, Join)
        first, sign, second = step.doc.parts
        alias = [] if _named(first, names) == target else [Statement(f"{target} = ", _named(first, names))]
        return [*alias, Statement(f"{target}{sign}", _named(second, names))]
    return [Statement("return " if is_last else f"{target} = ", _named(step.doc, names))]


def _named(doc: Doc, names: Mapping[fx.Node, str]) -> Doc:
    return substitute(doc, lambda atom: names[atom.node] if isinstance(atom, Value) else atom)


def _loop(step: Step, tree: Tree, target: str) -> list[Statement]:
    parent = step.members[0].rpartition(".")[0]
    numbers = [int(path.rpartition(".")[2]) for path in step.members]
    start = f"{numbers[0]}, " if numbers[0] else ""
    in_a_row = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    values = f"range({start}{numbers[-1] + 1})" if in_a_row else f"({', '.join(map(str, numbers))})"
    return [Statement(f"for i in {values}:"), Statement(f"{target} = ", f"{tree.access(parent)}[i]({target})", 1)]
