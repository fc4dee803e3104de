"""The steps of several variants of a block as one list, in which some steps run in some of the variants alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from torch import fx

from td_compiler.emission.dense import MAPS
from td_compiler.emission.layout import Join, Number, Slot, Value, flat, substitute
from td_compiler.emission.steps import Step

__all__ = ["Aligned", "Alignment", "Body", "align", "step_key"]


@dataclass(eq=False)
class Aligned:
    """A step, or an argument, as the variants have it.

    Attributes:
        key: what the variants' steps have in common.
        steps: the step by variant; of an argument, or a copy of a value, its node.
        node: stands for its value, and for all values that have one name with it.
        copies: of a step that only gives a value another name: that value by variant.
    """

    key: str
    steps: dict[int, Step] = field(default_factory=dict)
    nodes: dict[int, fx.Node] = field(default_factory=dict)
    copies: dict[int, Aligned] = field(default_factory=dict)

    @property
    def variants(self) -> frozenset[int]:
        """The variants that it is in."""
        return frozenset(self.nodes)


@dataclass(frozen=True)
class Body:
    """One variant's steps.

    Attributes:
        arguments: the names that the forward gives what it takes, by node.
        result: the node that it returns.
    """

    steps: tuple[Step, ...]
    arguments: Mapping[fx.Node, str]
    result: fx.Node


@dataclass(frozen=True)
class Alignment:
    """The steps of several variants in one order.

    Attributes:
        ops: arguments, steps and copies, in order.
        names: by each the one that stands for all whose values have its name.
        reads: by each, and by variant, what it reads, in order.
        result: what is returned.
    """

    ops: list[Aligned]
    names: dict[Aligned, Aligned]
    reads: dict[Aligned, dict[int, list[Aligned]]]
    result: Aligned


def step_key(step: Step) -> str:
    """What a step does, whatever the numbers in it and the values that it reads."""
    if step.loop == MAPS:
        return f"{MAPS} {flat(step.doc)}"
    if step.loop:
        assert isinstance(step.doc, Join) and isinstance(step.doc.parts[0], Join)
        return f"{flat(step.doc.parts[0].parts[0])}[:]"
    names = ",".join(step.members)
    return f"{flat(substitute(step.doc, _blank))}|{step.form}|{names}"


def _blank(atom: Number | Value | Slot) -> str:
    return "_" if isinstance(atom, Number) else "%"


def align(bodies: Sequence[Body]) -> Alignment | None:
    """Steps of all variants in one order; None where no names make every step read what it reads in each of them."""
    ops = _merge(bodies)
    made: dict[tuple[int, fx.Node], Aligned] = {(v, node): op for op in ops for v, node in op.nodes.items()}
    reads: dict[Aligned, dict[int, list[Aligned]]] = {
        op: {v: [made[v, node] for node in step.inputs] for v, step in op.steps.items()} for op in ops
    }
    result = Aligned("return")
    for v, body in enumerate(bodies):
        result.nodes[v] = body.result
    reads[result] = {v: [made[v, body.result]] for v, body in enumerate(bodies)}
    for _ in range(8):
        names = _names(ops, result, reads)
        conflict = _conflict([*ops, result], reads, names)
        if conflict is None:
            names = _bound_anew([*ops, result], len(bodies), reads, names)
            return Alignment(ops, names, reads, names[reads[result][0][0]])
        if not _add_copy(ops, [*ops, result], reads, names, *conflict):
            return None
    return None


def _merge(bodies: Sequence[Body]) -> list[Aligned]:
    arguments: dict[str, Aligned] = {}
    for v, body in enumerate(bodies):
        for node, name in body.arguments.items():
            arguments.setdefault(name, Aligned(f"argument {name}")).nodes[v] = node
    merged: list[Aligned] = []
    for v, body in enumerate(bodies):
        keys = [step_key(step) for step in body.steps]
        matcher = SequenceMatcher(None, [op.key for op in merged], keys, autojunk=False)
        united: list[Aligned] = []
        for tag, i, j, k, end in matcher.get_opcodes():
            if tag == "equal":
                for op, step in zip(merged[i:j], body.steps[k:end], strict=True):
                    op.steps[v], op.nodes[v] = step, step.node
                    united.append(op)
                continue
            united += merged[i:j]
            united += [Aligned(keys[n], {v: body.steps[n]}, {v: body.steps[n].node}) for n in range(k, end)]
        merged = united
    return [*arguments.values(), *merged]


def _names(
    ops: Sequence[Aligned], result: Aligned, reads: Mapping[Aligned, Mapping[int, list[Aligned]]]
) -> dict[Aligned, Aligned]:
    """Values between which a reader does not tell have one name: by each, the first of them."""
    heads = {op: op for op in ops}

    def head(op: Aligned) -> Aligned:
        while heads[op] is not op:
            op = heads[op]
        return op

    order = {op: i for i, op in enumerate(ops)}
    for reader in [*ops, result]:
        given = list(reads.get(reader, {}).values())
        for operands in zip(*given, strict=True) if given else ():
            for other in operands[1:]:
                pair = sorted((head(operands[0]), head(other)), key=order.__getitem__)
                heads[pair[1]] = pair[0]
    return {op: head(op) for op in ops}


def _bound_anew(
    ops: Sequence[Aligned],
    variants: int,
    reads: Mapping[Aligned, Mapping[int, list[Aligned]]],
    names: dict[Aligned, Aligned],
) -> dict[Aligned, Aligned]:
    """What only some variants compute of one map gets that map's name, where nothing reads the map any more."""
    for op in ops:
        if not op.steps or len(op.nodes) == variants:
            continue
        first = {names[operands[0]] for operands in reads[op].values() if operands}
        if len(first) == 1 and not (kept := first.pop()).key.endswith("image") and kept is not names[op]:
            joined = {each: kept if name is names[op] else name for each, name in names.items()}
            if _conflict(ops, reads, joined) is None:
                names = joined
    return names


def _conflict(
    ops: Sequence[Aligned], reads: Mapping[Aligned, Mapping[int, list[Aligned]]], names: Mapping[Aligned, Aligned]
) -> tuple[Aligned, int] | None:
    """The first value, and variant, that is read after its name has got another one's."""
    held: dict[tuple[int, Aligned], Aligned] = {}
    for op in ops:
        for v, operands in reads.get(op, {}).items():
            for operand in operands:
                if held.get((v, names[operand])) is not operand:
                    return operand, v
        for v in op.nodes:
            if op in names:
                held[v, names[op]] = op
    return None


def _add_copy(
    ops: list[Aligned],
    readers: Sequence[Aligned],
    reads: dict[Aligned, dict[int, list[Aligned]]],
    names: Mapping[Aligned, Aligned],
    wanted: Aligned,
    variant: int,
) -> bool:
    """Give a value another name where a reader takes it in some variants and another value in others."""
    for reader in readers:
        given = reads.get(reader, {})
        for slot in range(len(next(iter(given.values()), []))):
            taken = {v: operands[slot] for v, operands in given.items()}
            others = [op for op in taken.values() if op is not wanted and ops.index(op) > ops.index(wanted)]
            if wanted not in taken.values() or not others:
                continue
            at = min(ops.index(op) for op in others)
            inside = [v for v in taken if v in wanted.nodes]
            copy = Aligned(f"copy {len(ops)}", copies=dict.fromkeys(inside, wanted))
            copy.nodes = {v: fx.Graph().placeholder("x") for v in inside}
            ops.insert(at, copy)
            reads[copy] = {v: [wanted] for v in inside}
            for v, op in taken.items():
                if op is wanted:
                    given[v] = [*given[v][:slot], copy, *given[v][slot + 1 :]]
            return True
    return False
