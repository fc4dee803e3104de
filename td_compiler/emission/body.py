"""Steps as statements: values get names, and a name is used again where its value is read for the last time."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from td_compiler.emission.layout import Doc, Group, Join, Statement, Value, atoms, call, literal, substitute
from td_compiler.emission.steps import SIZE_NAMES, Step, call_sequences, make_loops, nest
from td_compiler.emission.tree import Tree

__all__ = ["write_body"]

_POOL = ("y", "z", "u", "v", "w")


def write_body(
    steps: list[Step], tree: Tree, arguments: Mapping[fx.Node, str], results: tuple[fx.Node, ...], fixed: set[fx.Node]
) -> list[Statement]:
    """The statements of a function that takes the values `arguments` by name and returns those of `results`.

    `fixed` are arguments whose names keep their value throughout, such as the image.
    """
    steps = call_sequences(steps, tree, results)
    steps = make_loops(steps, tree, results, fixed)
    steps = nest(steps, results)
    last_use = {node: i for i, step in enumerate(steps) for node in step.inputs}
    last_use.update(dict.fromkeys(results, len(steps)))
    names = dict(arguments)
    kept = {names[node] for node in fixed if node in names}
    statements: list[Statement] = []
    for i, step in enumerate(steps):
        live = kept | {name for node, name in names.items() if last_use.get(node, -1) > i}
        dying = [node for node in step.inputs if last_use[node] == i]
        if step.node not in last_use:
            statements.append(Statement("", _named(step.doc, names)))
            continue
        if step.form == "inplace":  # the first operand's name is bound anew before the others are read
            first, *others = _operands(step)
            dying = [node for node in first if node in dying]
            live |= {names[node] for operand in others for node in operand}
        target = _target(step, names, live, dying)
        is_last = i == len(steps) - 1 and results == (step.node,)
        statements += _statements(step, tree, names, target, is_last=is_last)
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
    children = [path.rpartition(".")[2] for path in step.members]
    container = tree.access(parent)
    if tree.kind(parent) == "sequence":
        size = len(tree.root.get_submodule(parent)._modules)
        first, last = int(children[0]), int(children[-1])
        part = f"[{first or ''}:{last + 1 if last + 1 < size else ''}]"
        variable = "layer" if all(tree.is_layer(path) for path in step.members) else "block"
        return [
            Statement(f"for {variable} in {container}{part}:"),
            Statement(f"{target} = ", f"{variable}({target})", 1),
        ]
    numbers = [int(name) if name.isdecimal() and str(int(name)) == name else -1 for name in children]
    if tree.kind(parent) == "numbers":
        start = f"{numbers[0]}, " if numbers[0] else ""
        in_a_row = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        values = f"range({start}{numbers[-1] + 1})" if in_a_row else f"({', '.join(map(str, numbers))})"
        return [Statement(f"for i in {values}:"), Statement(f"{target} = ", f"{container}[i]({target})", 1)]
    keys = Group("(", tuple(literal(name) for name in children), ")", is_tuple=True)
    return [
        Statement("for name in ", Join((keys, ":"))),
        Statement(f"{target} = ", call(f"{container}[name]", target), 1),
    ]
