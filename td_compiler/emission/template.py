"""A class with slots for variants of one kind of unit, and how the slots are filled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from td_compiler.emission.align import Aligned, Alignment, align
from td_compiler.emission.body import write_steps
from td_compiler.emission.branches import grouped
from td_compiler.emission.classes import Declaration, Draft, SharedClass
from td_compiler.emission.conditions import Conditions
from td_compiler.emission.layout import Doc, Group, Join, Maybe, Repeat, Slot, Value, call, flat, substitute
from td_compiler.emission.parameters import Hole, find_parameters, kind_of_layer
from td_compiler.emission.signature import annotation, leading, usual
from td_compiler.emission.steps import Step
from td_compiler.emission.tree import is_numbered
from td_compiler.emission.unify import MISSING, Mismatch, Unifier, show, united
from td_compiler.emission.units import Unit
from td_compiler.graph.names import is_attribute

__all__ = ["SELF", "Template"]

_MAX_CONDITIONS = 5

SELF = "@"  # in an instance's call: the class, until it has a name

_TENSOR = "Tensor"


class Template:
    """A class with slots, for variants of one kind of unit."""

    def __init__(self, variants: list[list[Draft]], defaults: Mapping[str, Mapping[str, Any]]) -> None:
        self._variants = variants
        self._firsts = [members[0] for members in variants]
        self._unifier = Unifier(defaults)
        self._all = frozenset(range(len(variants)))
        self.masks: dict[str, frozenset[int]] = {}  # what is known of a variant in the forward: condition -> variants
        self._owners: list[dict[int, int]] = []  # owner -> variant -> which of the draft's expressions
        self._declarations = [self._declare(name) for name in _declared(self._firsts)]
        self._homes = {owner: declaration.name for owner, (declaration, _) in enumerate(self._declarations)}
        self._steps, self._arguments, self._result = self._align()

    def _owner(self, places: dict[int, int]) -> int:
        self._owners.append(places)
        return len(self._owners) - 1

    def _declare(self, name: str) -> tuple[Declaration, frozenset[int]]:
        places = {
            v: i for v, draft in enumerate(self._firsts) for i, d in enumerate(draft.declarations) if d.name == name
        }
        found = {v: self._firsts[v].declarations[i] for v, i in places.items()}
        kinds = {d.kind for d in found.values()}
        if len(kinds) > 1:
            raise Mismatch(name)
        docs = {v: d.doc for v, d in found.items()}
        doc = self._unifier.template(docs, self._owner(places), name=name)
        return Declaration(name, kinds.pop(), doc), frozenset(found)

    def _align(self) -> tuple[list[Step], dict[fx.Node, str], fx.Node | None]:
        bodies = [draft.body for draft in self._firsts if draft.body is not None]
        if not bodies:
            return [], {}, None
        same = len({tuple(_modules(draft.unit)) for draft in self._firsts}) == 1
        aligned = align(bodies) if len(bodies) == len(self._firsts) and same else None
        if aligned is None:
            raise Mismatch("the forward")
        nodes = {op: next(iter(aligned.names[op].nodes.values())) for op in aligned.ops}
        arguments: dict[fx.Node, str] = {}
        steps = []
        for op in aligned.ops:
            when = None if op.variants == self._all else (op.variants, "")
            if op.steps:
                steps.append(self._step(op, aligned, nodes))
            elif op.copies:
                source = nodes[next(iter(op.copies.values()))]
                steps.append(Step(nodes[op], Value(source), when=when, depth=0))
            else:
                name = op.key.removeprefix("argument ")
                if when and name != "image":
                    raise Mismatch(name)
                if when:
                    self.masks["image is not None"] = op.variants
                arguments[nodes[op]] = name
        return steps, arguments, nodes[aligned.result]

    def _step(self, op: Aligned, aligned: Alignment, nodes: Mapping[Aligned, fx.Node]) -> Step:
        places = {v: self._place(v, step) for v, step in op.steps.items()}
        docs = {v: step.doc for v, step in op.steps.items()}
        doc = self._unifier.template(docs, self._owner(places), in_forward=True)
        first = next(iter(op.steps))
        reads = iter([nodes[read] for read in aligned.reads[op][first]])
        doc = substitute(doc, lambda atom: Value(next(reads)) if isinstance(atom, Value) else atom)
        step = replace(op.steps[first], node=nodes[op], doc=doc)
        if op.variants == self._all:
            return step
        optional = {d.name for d, variants in self._declarations if variants == op.variants}
        return replace(step, when=(op.variants, next((name for name in _called(step) if name in optional), "")))

    def _place(self, variant: int, step: Step) -> int:
        draft = self._firsts[variant]
        assert draft.body is not None
        return len(draft.declarations) + next(i for i, own in enumerate(draft.body.steps) if own is step)

    def fill(self) -> SharedClass:
        """The class, every slot filled with a number, a parameter, or what can be computed from one."""
        made = SharedClass("", [draft for members in self._variants for draft in members])
        variants = [v for v, members in enumerate(self._variants) for _ in members]
        holes = self._holes(made.drafts, variants)
        names = [declaration.name for declaration, _ in self._declarations]
        parameters = find_parameters(holes, names)
        conditions = Conditions(variants, parameters.values, self.masks, names, list(parameters.stored))
        base = self._chain()
        optional = {d.name: when for d, when in self._declarations if when != self._all}
        docs = {declaration.name: declaration.doc for declaration, _ in self._declarations}
        for name, when in optional.items():
            word = name if name.isidentifier() else _word(docs[name])
            conditions.declare(name, when, attribute=base is None, word=word)
        texts = {}
        for step in [] if base else self._steps:
            if step.when and step.when not in texts:
                texts[step.when] = conditions.run(*step.when, _purpose(step))
        if conditions.count > _MAX_CONDITIONS:
            raise Mismatch("too many conditions")

        for doc in (declaration.doc for declaration, _ in self._declarations):
            for maybe in _maybes(doc):
                conditions.declare(str(id(maybe)), maybe.when, attribute=False, word=_word(maybe.doc))

        def fill(doc: Doc) -> Doc:
            doc = _with_conditions(doc, conditions)
            return substitute(doc, lambda a: parameters.expression(holes[a.index]) if isinstance(a, Slot) else a)

        made.declarations = [
            replace(d, doc=fill(d.doc), condition=conditions.of(d.name) if d.name in optional else "")
            for d, _ in self._declarations
        ]
        first = self._firsts[0]
        if self._result is not None and base is None:
            fixed = {node for node, name in self._arguments.items() if name == "image" and len(self._arguments) > 1}
            steps = [replace(step, doc=fill(step.doc)) for step in self._steps]
            body = write_steps(steps, first.tree, self._arguments, (self._result,), fixed)
            made.statements = [*first.lead, *grouped(body, texts)]
        modules = _modules(first.unit)
        for name in self._arguments.values() if first.body else ():
            made.arguments[name] = _TENSOR
        made.arguments |= dict.fromkeys(modules, "nn.Module")
        if "image" in made.arguments and len(made.arguments) > 1:
            del made.arguments["image"]
            made.arguments["image"] = f"{_TENSOR} | None = None" if "image is not None" in self.masks else _TENSOR
        made.base = base or ("nn.Sequential" if self._has_places() else "nn.Module")
        made.stored = {**{name: name for name in parameters.stored}, **conditions.stored}
        values = {**parameters.values, **conditions.flags}
        made.defaults = {name: default[0] for name, given in values.items() if (default := usual(name, given))}
        order = sorted(values, key=lambda name: name in made.defaults)
        made.parameters = {name: annotation(values[name], made.defaults, name) for name in order}
        for i, draft in enumerate(made.drafts):
            given = {name: values[name][i] for name in order}
            given = {
                n: v
                for n, v in given.items()
                if v is not MISSING and not (n in made.defaults and v == made.defaults[n])
            }
            docs = {name: show(value, name) for name, value in given.items()}
            lead = [docs.pop(name) for name in leading(list(docs), order)]
            made.instances[draft.unit.path] = call(SELF, *lead, **docs)
        return made

    def _holes(self, drafts: Sequence[Draft], variants: Sequence[int]) -> list[Hole]:
        docs = []
        for draft, v in zip(drafts, variants, strict=True):
            all_docs = draft.docs
            docs.append({owner: all_docs[places[v]] for owner, places in enumerate(self._owners) if v in places})
        return [
            Hole(
                row.role,
                tuple(self._unifier.values(i, v, d) for v, d in zip(variants, docs, strict=True)),
                row.in_forward,
                self._homes.get(self._unifier.owner(i), ""),
            )
            for i, row in enumerate(self._unifier.rows)
        ]

    def _has_places(self) -> bool:
        """Whether no layer's name is an attribute's, so that the class is a Sequential with a forward of its own."""
        kinds = {declaration.kind for declaration, _ in self._declarations}
        return kinds == {"module"} and not any(is_attribute(declaration.name) for declaration, _ in self._declarations)

    def _chain(self) -> str | None:
        """`nn.Sequential`, where the forward calls all layers in a row and does nothing else."""
        if self._result is None or len(self._arguments) != 1 or not self._steps or any(d.lead for d in self._firsts):
            return None
        value = next(iter(self._arguments))
        names = []
        for step in self._steps:
            if step.inputs != [value] or "." in step.path or not step.path or step.members:
                return None
            names.append((step.path, step.when[0] if step.when else self._all))
            value = step.node
        declared = {d.name: (d, when) for d, when in self._declarations if d.kind == "module"}
        whole = len(names) == len(declared) == len(self._declarations) and value is self._result
        if not whole or any(name not in declared or declared[name][1] != when for name, when in names):
            return None
        for v, draft in enumerate(self._firsts):
            own = [name for name, when in names if v in when]
            if [d.name for d in draft.declarations] != own:
                return None
            if not is_numbered(own) and not all(map(is_attribute, own)):  # a Sequential would number them anew
                return None
        self._declarations = [declared[name] for name, _ in names]
        return "nn.Sequential"


def _modules(unit: Unit) -> list[str]:
    """The names of the modules that a unit's forward is given."""
    return [name for key, name in unit.arguments.items() if isinstance(key, str)]


def _declared(drafts: Sequence[Draft]) -> list[str]:
    """The names that the drafts declare, in an order that keeps that of each, as far as they agree."""
    return united([[declaration.name for declaration in draft.declarations] for draft in drafts])


def _maybes(doc: Doc) -> Iterator[Maybe]:
    match doc:
        case Maybe():
            yield doc
            yield from _maybes(doc.doc)
        case Repeat(inner):
            yield from _maybes(inner)
        case Join(parts) | Group(_, parts):
            for part in parts:
                yield from _maybes(part)


def _with_conditions(doc: Doc, conditions: Conditions) -> Doc:
    match doc:
        case Maybe(inner, when):
            return Maybe(_with_conditions(inner, conditions), when, conditions.of(str(id(doc))))
        case Repeat(inner, count, counts):
            return Repeat(_with_conditions(inner, conditions), count, counts)
        case Join(parts):
            return Join(tuple(_with_conditions(part, conditions) for part in parts))
        case Group(opening, items, closing, is_tuple, hug):
            items = tuple(_with_conditions(item, conditions) for item in items)
            return Group(opening, items, closing, is_tuple, hug)
    return doc


def _word(doc: Doc) -> str:
    """A word for a layer that is not always there: what it is, or its class."""
    function = flat(doc).partition("(")[0]
    kind = kind_of_layer(function)
    words = re.findall(r"[A-Z]+[a-z]*|[a-z]+", function.rpartition(".")[2])
    return "with_" + (kind or "_".join(words[:1]).lower())


def _called(step: Step) -> list[str]:
    """The attributes whose modules a step calls."""
    return re.findall(r"self\.(\w+)", flat(step.doc))


def _purpose(step: Step) -> str:
    """A word for what a step is for, which a flag for it can have as its name."""
    text = flat(step.doc)
    if "+" in text:
        return "residual"
    words = re.findall(r"(?:self|F|torch|nn)\.(\w+)", text)
    return words[0] if words else "gated" if "*" in text else "grows" if "upsample" in text else "full"
