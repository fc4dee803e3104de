"""Units of one kind share one class: what differs in them becomes its parameters, and steps that some of them lack."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import groupby, takewhile
from typing import Any

from torch import fx

from td_compiler.emission.align import Aligned, Alignment, Body, align, step_key
from td_compiler.emission.body import write_steps
from td_compiler.emission.conditions import Conditions, opposite
from td_compiler.emission.layout import (
    WIDTH,
    Doc,
    Group,
    Join,
    Maybe,
    Number,
    Repeat,
    Slot,
    Statement,
    Value,
    call,
    flat,
    substitute,
)
from td_compiler.emission.parameters import POSITIONAL, Hole, find_parameters, kind_of_layer
from td_compiler.emission.roles import Role, role_of
from td_compiler.emission.runs import in_parts
from td_compiler.emission.steps import Step
from td_compiler.emission.tree import Tree, is_numbered
from td_compiler.emission.unify import MISSING, Argument, Mismatch, Text, Unifier, show, united
from td_compiler.emission.units import Unit
from td_compiler.graph.names import camel_case, is_attribute

__all__ = ["Declaration", "Draft", "SharedClass", "Sharer"]


@dataclass(frozen=True)
class Declaration:
    """A line of `__init__`: a child module, parameter or buffer by name, and the expression that makes it.

    One of the kind `call` is the expression alone.
    `condition`: when it is there; "" for always.
    """

    name: str
    kind: str
    doc: Doc
    condition: str = ""


@dataclass(frozen=True)
class Draft:
    """One unit as a class of its own would be written, every number in place.

    Attributes:
        body: its steps; None where it only holds parameters and layers for others.
        tree: the modules below it.
        lead: statements that stand before its steps.
    """

    unit: Unit
    declarations: tuple[Declaration, ...]
    body: Body | None
    tree: Tree
    lead: tuple[Statement, ...] = ()

    def structure(self) -> object:
        """What units of one variant have in common: everything but the numbers."""
        declared = tuple((d.name, d.kind, _blank(d.doc)) for d in self.declarations)
        if self.body is None:
            return declared
        places: dict[fx.Node, str] = dict(self.body.arguments)
        stated = []
        for i, step in enumerate(self.body.steps):
            stated.append((step_key(step), tuple(places[node] for node in step.inputs)))
            places[step.node] = f"%{i}"
        return declared, tuple(self.unit.arguments.values()), tuple(stated), places[self.body.result]

    @property
    def docs(self) -> list[Doc]:
        """All its expressions, in order."""
        return [d.doc for d in self.declarations] + [step.doc for step in (self.body.steps if self.body else ())]


@dataclass
class SharedClass:
    """A class for units of one kind.

    Attributes:
        drafts: the units.
        base: the class that it extends.
        summary: what it does, in a sentence.
        declarations, statements: the lines of `__init__` and of the forward; no statements where the base has one.
        arguments: what the forward takes, and whether it may be left out.
        parameters: name and type, with a default where there is one, of what `__init__` takes.
        stored: attributes that the forward reads, and what they are set to.
        instances: the constructor call of every unit, by path.
        defaults: what parameters are where a call does not say.
    """

    name: str
    drafts: list[Draft]
    base: str = "nn.Module"
    summary: str = ""
    declarations: list[Declaration] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    instances: dict[str, Doc] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        """Whether it is a Sequential whose layers have the numbers that it gives them for names."""
        names = ([declaration.name for declaration in draft.declarations] for draft in self.drafts)
        return self.base == "nn.Sequential" and all(map(is_numbered, names))


_MAX_CONDITIONS = 5
_ALIKE = 0.34  # of two variants' steps and layers


class Sharer:
    """Makes the classes of units.

    Args:
        taken: names that no class may have; those that are given are added.
    """

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._defaults: dict[str, dict[str, Any]] = {}
        self._roles: dict[str, Role] = {}

    def share(self, drafts: Iterable[Draft]) -> list[SharedClass]:
        """One class for every kind of unit, in order of first use; more where they have little in common."""
        groups: dict[tuple[str, object], list[Draft]] = {}
        for draft in _in_parts(list(drafts)):
            groups.setdefault((draft.unit.base, draft.structure()), []).append(draft)
        kinds: dict[str, list[list[Draft]]] = {}
        for (base, _), members in groups.items():
            kinds.setdefault(base, []).append(members)
        shared = []
        for base, variants in kinds.items():
            clusters = self._clusters(variants)
            for i, made in enumerate(clusters):
                made.name = self._name(base, made, clusters[:i])
                self._taken.add(made.name)
                self._defaults[made.name] = made.defaults
                made.instances = {path: _named(doc, made.name) for path, doc in made.instances.items()}
                layers = [d.doc for d in made.declarations if not d.condition or made.base != "nn.Module"]
                role = role_of(base, layers, made.statements, made.arguments, self._roles, self._defaults)
                self._roles[made.name], made.summary = role, role.sentence
                shared.append(made)
        return shared

    def _clusters(self, variants: list[list[Draft]]) -> list[SharedClass]:
        """The variants in as few classes as they fit in."""
        whole = self._unite(variants)
        if whole is not None:
            return [whole]
        clusters: list[tuple[list[list[Draft]], SharedClass]] = []
        for variant in sorted(variants, key=lambda members: -len(members)):
            for i, (together, _) in enumerate(clusters):
                united = self._unite([*together, variant])
                if united is not None:
                    clusters[i] = [*together, variant], united
                    break
            else:
                alone = self._unite([variant])
                assert alone is not None, f"{variant[0].unit.path}: one variant has no template"
                clusters.append(([variant], alone))
        return [made for _, made in clusters]

    def _unite(self, variants: list[list[Draft]]) -> SharedClass | None:
        if len(variants) > 1 and not _are_alike(variants):
            return None
        try:
            made = _Template(variants, self._defaults).fill()
        except Mismatch:
            return None
        return made

    def _name(self, base: str, made: SharedClass, others: Sequence[SharedClass]) -> str:
        """A name that tells what a class has and the other ones of its kind have not."""
        candidates = [base]
        for other in others:
            more = [d.name for d in made.declarations if d.name not in {each.name for each in other.declarations}]
            candidates += [f"{base}With{camel_case(name)}" for name in more if name.isidentifier()]
            if "image" in made.arguments and "image" not in other.arguments:
                candidates.append(f"Growing{base}")
            first, its_first = _first_called(made), _first_called(other)
            if first and first != its_first:
                candidates.append(f"{camel_case(first)}First{base}")
            if len(made.declarations) < len(other.declarations):
                candidates.append(f"Small{base}")
            if len(made.arguments) < len(other.arguments):
                grows = "image" in other.arguments and "image" not in made.arguments
                candidates.append(f"{'Plain' if grows else 'Single'}{base}")
        place = made.drafts[0].unit.path.split(".")
        candidates += [f"{camel_case(name)}{base}" for name in reversed(place) if name.isidentifier()]
        candidates += [f"{base}{i}" for i in range(2, len(self._taken) + 3)]
        return next(name for name in candidates if name not in self._taken and name.isidentifier())


def _first_called(made: SharedClass) -> str:
    """The attribute that a forward calls first."""
    text = "\n".join("    " * statement.level + statement.prefix + flat(statement.doc) for statement in made.statements)
    tree = ast.parse(f"def forward():\n{textwrap.indent(text, '    ')}") if text else ast.Module([], [])
    return next(_calls_in_order(tree), "")


def _calls_in_order(node: ast.AST) -> Iterator[str]:
    """The attributes of `self` that are called, in the order in which they run."""
    for child in ast.iter_child_nodes(node):
        yield from _calls_in_order(child)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "self":
        yield node.func.attr


def _in_parts(drafts: list[Draft]) -> list[Draft]:
    """The drafts, kind by kind with the same parts of Sequentials where some of a kind interrupt one."""
    made = list(drafts)
    for base in dict.fromkeys(draft.unit.base for draft in drafts):
        places = [i for i, draft in enumerate(drafts) if draft.unit.base == base and draft.body is not None]
        bodies = [body for i in places if (body := drafts[i].body) is not None]
        if len({tuple(map(step_key, body.steps)) for body in bodies}) > 1:
            for i, body in zip(places, in_parts(bodies, [drafts[i].tree for i in places]), strict=True):
                made[i] = replace(drafts[i], body=body)
    return made


def _are_alike(variants: list[list[Draft]]) -> bool:
    keys = [_keys(members[0]) for members in variants]
    first = max(keys, key=len)
    return all(
        SequenceMatcher(None, first, other, autojunk=False).ratio() >= _ALIKE for other in keys if other is not first
    )


def _keys(draft: Draft) -> list[str]:
    return [step_key(step) for step in draft.body.steps] if draft.body else [d.name for d in draft.declarations]


class _Template:
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
            made.statements = [*first.lead, *_grouped(body, texts)]
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
        made.defaults = {name: default[0] for name, given in values.items() if (default := _usual(name, given))}
        order = sorted(values, key=lambda name: name in made.defaults)
        made.parameters = {name: _annotation(values[name], made.defaults, name) for name in order}
        for i, draft in enumerate(made.drafts):
            given = {name: values[name][i] for name in order}
            given = {
                n: v
                for n, v in given.items()
                if v is not MISSING and not (n in made.defaults and v == made.defaults[n])
            }
            docs = {name: show(value, name) for name, value in given.items()}
            lead = [docs.pop(name) for name in _leading(list(docs), order)]
            made.instances[draft.unit.path] = call(_SELF, *lead, **docs)
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


_SELF = "@"  # in an instance's call: the class, until it has a name
_TENSOR = "Tensor"


def _modules(unit: Unit) -> list[str]:
    """The names of the modules that a unit's forward is given."""
    return [name for key, name in unit.arguments.items() if isinstance(key, str)]


def _blank(doc: Doc) -> str:
    return flat(substitute(doc, lambda atom: "_" if isinstance(atom, Number) else atom))


def _named(doc: Doc, name: str) -> Doc:
    assert isinstance(doc, Join)
    return Join((name, *doc.parts[1:]))


def _declared(drafts: Sequence[Draft]) -> list[str]:
    """The names that the drafts declare, in an order that keeps that of each, as far as they agree."""
    return united([[declaration.name for declaration in draft.declarations] for draft in drafts])


def _leading(names: Sequence[str], parameters: Sequence[str]) -> list[str]:
    """The arguments that are given by position: the first ones, if they say how wide a block is, or one alone.

    `names` are those that are given, in the order of the `parameters`: behind one that is left out none has its place.
    """
    pairs = zip(names, parameters, strict=False)
    first = [name for name, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if len(first) == len(names) == 1 and first[0] in _BY_POSITION | {"hidden"}:
        return first
    return [name for i, name in enumerate(first) if set(first[: i + 1]) <= _BY_POSITION]


_BY_POSITION = set(POSITIONAL)


def _annotation(values: Sequence[Any], defaults: Mapping[str, Any], name: str) -> str:
    kinds = sorted({_kind(value) for value in values if value is not MISSING})
    kind = " | ".join(kinds)
    if name not in defaults:
        return kind
    default = defaults[name]
    return f"{kind} | None = None" if default is None else f"{kind} = {flat(show(default))}"


def _kind(value: Any) -> str:
    if isinstance(value, Text) and value.text.startswith("["):
        return "list[float]" if "." in value.text else "list[int]"
    if isinstance(value, Text):
        return "nn.Module" if "(" in value.text else "type[nn.Module]"
    if isinstance(value, Argument):
        return type(value.value).__name__
    if isinstance(value, tuple):
        return f"tuple[{', '.join(_kind(item) for item in value)}]"
    return type(value).__name__ if value is not None else "None"


def _usual(name: str, values: Sequence[Any]) -> list[Any]:
    """What a parameter is where a call does not say: what at least half of the instances have; [] for none."""
    if any(value is MISSING for value in values):
        return [None]
    if name in _BY_POSITION or "channels" in name or "hidden" in name or len(values) < 3:
        return [False] if all(isinstance(value, bool) for value in values) else []
    best = max(values, key=lambda value: (values.count(value), repr(value)))
    # A default that is a layer, or a list, would be one for all calls.
    is_made = isinstance(best, Argument) or (isinstance(best, Text) and ("(" in best.text or best.text[0] == "["))
    return [best] if 2 * values.count(best) >= len(values) and not is_made else []


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


def _grouped(statements: Sequence[Statement], texts: Mapping[tuple[frozenset[int], str], str]) -> list[Statement]:
    """Statements that run in some variants alone, below a condition, or as a choice where one line holds it."""
    made: list[Statement] = []
    above = ""
    for condition, group in _under_conditions(statements, texts):
        if not condition:
            if made and made[-1].level and (one := _choice(made[-2:], group[0])):
                made[-2:] = []
                group[0] = one
            made += group
            above = ""
        elif len(group) == 1 and made and (one := _default(made[-1], group[0], condition)):
            made[-1], above = one, ""
        else:
            is_else = bool(above) and condition == opposite(above)
            if is_else and (one := _either(made[-2:], group)):
                made[-2:], above = [one], ""
                continue
            above = "" if is_else else condition
            made.append(Statement("else:" if is_else else f"if {condition}:"))
            made += [replace(statement, level=statement.level + 1) for statement in group]
    return made


def _under_conditions(
    statements: Sequence[Statement], texts: Mapping[tuple[frozenset[int], str], str]
) -> Iterator[tuple[str, list[Statement]]]:
    """Runs of statements with their condition, "" for none.

    Where the same variants have a layer and the image, what runs before the image is read is told by the layer.
    """
    for variants, run in groupby(statements, lambda statement: statement.when and statement.when[0]):
        group = list(run)
        found = list(dict.fromkeys(texts[statement.when] for statement in group if statement.when))
        if variants is None or len(found) == 1:
            yield "".join(found), group
            continue
        reads = [bool(re.search(r"\bimage\b", flat(statement.doc))) for statement in group]
        first = reads.index(True) if True in reads else len(group)
        by_layer = next(text for text in found if "image" not in text)
        by_image = next((text for text in found if "image" in text), by_layer)
        if any(texts[statement.when] == by_layer for statement in group[:first] if statement.when):
            yield by_layer, group[:first]
            group = group[first:]
        if group:
            yield by_image, group


def _default(before: Statement, then: Statement, condition: str) -> Statement | None:
    """`y = x` and, under a condition, `y = f(x)` as one line."""
    if before.prefix != then.prefix or not isinstance(before.doc, str) or before.level or then.level:
        return None
    if not before.doc.isidentifier() or not before.prefix.endswith(" = "):
        return None
    if opposite(condition) == f"not {condition}":
        text = f"{flat(then.doc)} if {condition} else {before.doc}"
    else:
        text = f"{before.doc} if {opposite(condition)} else {flat(then.doc)}"
    return Statement(before.prefix, text) if len(before.prefix + text) + 8 <= WIDTH else None


def _either(last: Sequence[Statement], group: Sequence[Statement]) -> Statement | None:
    """`y = f(x) if condition else g(x)` for an assignment under a condition and one to that name under its opposite."""
    if len(group) != 1 or len(last) < 2 or not last[0].prefix.startswith("if ") or last[0].level != 0:
        return None
    then, other = last[1], group[0]
    if then.prefix != other.prefix or not then.prefix.endswith(" = ") or then.level != 1 or other.level:
        return None
    text = f"{flat(then.doc)} if {last[0].prefix[3:-1]} else {flat(other.doc)}"
    return Statement(then.prefix, text) if len(then.prefix + text) + 8 <= WIDTH else None


def _choice(last: Sequence[Statement], end: Statement) -> Statement | None:
    """`return f(x) if condition else x` for an assignment under a condition and the return of what it assigns."""
    if len(last) < 2 or not last[0].prefix.startswith("if ") or last[1].level != last[0].level + 1:
        return None
    if end.prefix != "return " or last[1].prefix != f"{end.doc} = ":
        return None
    text = f"{flat(last[1].doc)} if {last[0].prefix[3:-1]} else {end.doc}"
    return Statement(end.prefix, text) if len(end.prefix + text) + 8 <= WIDTH else None
