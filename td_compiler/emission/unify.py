"""Expressions of several variants as one template: what differs in them stands in slots."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn

from td_compiler.emission.layout import (
    Doc,
    Group,
    Join,
    Maybe,
    Number,
    Repeat,
    Slice,
    Slot,
    Value,
    atoms,
    flat,
    literal,
)

__all__ = ["MISSING", "Argument", "Mismatch", "Text", "Unifier", "is_call", "keywords_of", "show", "united"]


class Mismatch(Exception):
    """Two expressions have too little in common for one template."""


@dataclass(frozen=True)
class Text:
    """A value that is given as an expression: a class of layers, a layer, or a list of numbers."""

    text: str
    doc: Doc = field(default="", compare=False)


@dataclass(frozen=True)
class Argument:
    """A number that an argument of the network's class says, such as `num_classes`."""

    value: int | float
    argument: str


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
"""The value of a slot in an instance that has no such place."""

_Path: TypeAlias = "tuple[int | str, ...]"
_MAX_EXPRESSION = 48  # letters of a layer that is given as an argument


@dataclass
class _Row:
    role: str
    places: dict[int, _Path | Any]  # variant -> where its value stands in its expression, or, in a list, the value
    in_forward: bool = False


class Unifier:
    """Makes templates and remembers, slot by slot, where every variant's value stands.

    Args:
        defaults: of the emitted classes' parameters: class -> parameter -> value.
    """

    def __init__(self, defaults: Mapping[str, Mapping[str, Any]]) -> None:
        self.rows: list[_Row] = []
        self._owners: list[int] = []
        self._defaults = defaults
        self._owner = -1

    def template(self, docs: Mapping[int, Doc], owner: int, *, in_forward: bool = False, name: str = "") -> Doc:
        """One template for the expressions of variants; `owner` names the place whose expressions they are.

        Raises:
            Mismatch: if they have too little in common.
        """
        self._owner, self._in_forward = owner, in_forward
        start = len(self.rows)
        paths: dict[int, _Path] = dict.fromkeys(docs, ())
        try:
            return self._merge(docs, paths, "")
        except Mismatch:
            del self.rows[start:], self._owners[start:]
            if in_forward:
                raise
            return self._whole(docs, paths, name)

    def owner(self, row: int) -> int:
        """The place whose expressions a slot stands in."""
        return self._owners[row]

    def values(self, row: int, variant: int, docs: Mapping[int, Doc]) -> Any:
        """The value of a slot in an instance of a variant, whose expressions are given by owner."""
        place = self.rows[row].places.get(variant, MISSING)
        if place is MISSING or self._owners[row] not in docs:
            return MISSING
        if isinstance(place, list):
            return place[0]
        doc = docs[self._owners[row]]
        for step in place:
            doc = _child(doc, step)
        return _value(doc)

    def _slot(self, docs: Mapping[int, Doc | list[Any]], paths: Mapping[int, _Path], role: str) -> Doc:
        places = {v: doc if isinstance(doc, list) else paths[v] for v, doc in docs.items()}
        self.rows.append(_Row(role, places, self._in_forward))
        self._owners.append(self._owner)
        return Slot(len(self.rows) - 1)

    def _whole(self, docs: Mapping[int, Doc], paths: Mapping[int, _Path], name: str) -> Doc:
        texts = [flat(doc) for doc in docs.values()]
        if not all(
            text.startswith("nn.") and "Sequential" not in text and len(text) <= _MAX_EXPRESSION for text in texts
        ):
            raise Mismatch(name)
        return self._slot(docs, paths, name)

    def _merge(self, docs: Mapping[int, Doc], paths: Mapping[int, _Path], role: str) -> Doc:
        first, *others = docs.values()
        if isinstance(first, str) and all(first == other for other in others):
            return first
        if all(isinstance(doc, str) and doc.startswith("nn.") for doc in docs.values()):
            return self._slot(docs, paths, role)
        if all(isinstance(doc, Value) for doc in docs.values()):
            return first
        if all(isinstance(doc, Number) for doc in docs.values()):
            return self._slot(docs, paths, role or first.role)  # type: ignore[union-attr]
        if all(is_call(doc) for doc in docs.values()):
            return self._call(docs, paths)
        if all(isinstance(doc, Repeat) for doc in docs.values()):
            if len({doc.counts for doc in docs.values()}) > 1:  # type: ignore[union-attr]
                raise Mismatch(role)
            pairs: dict[int, tuple[Doc, ...]] = {
                v: (doc.doc, doc.count) for v, doc in docs.items() if isinstance(doc, Repeat)
            }
            item, count = self._items(pairs, paths, role)
            return Repeat(item, count, first.counts)  # type: ignore[union-attr]
        if all(isinstance(doc, Join) for doc in docs.values()):
            return Join(self._items({v: doc.parts for v, doc in docs.items()}, paths, role))  # type: ignore[union-attr]
        if all(isinstance(doc, Slice) for doc in docs.values()):
            starts = {v: doc.bounds[0] for v, doc in docs.items()}  # type: ignore[union-attr]
            if "" in starts.values() and any(isinstance(start, Number) for start in starts.values()):
                given = {v: [0] if start == "" else start for v, start in starts.items()}
                start = self._slot(given, {v: (*paths[v], 0) for v in docs}, "split")
                return Slice((start, *self._items({v: doc.bounds for v, doc in docs.items()}, paths, role, 1)))  # type: ignore[union-attr]
            return Slice(self._items({v: doc.bounds for v, doc in docs.items()}, paths, role))  # type: ignore[union-attr]
        groups = [doc for doc in docs.values() if isinstance(doc, Group)]
        if self._in_forward and len(groups) == len(docs) and all(map(_is_list, groups)):
            inner = next((atom.role for atom in atoms(groups[0]) if isinstance(atom, Number)), "")
            return self._slot(docs, paths, role or inner)
        if len(groups) == len(docs) and len({(g.opening, g.closing, g.is_tuple, len(g.items)) for g in groups}) == 1:
            items = self._items({v: doc.items for v, doc in docs.items()}, paths, role)  # type: ignore[union-attr]
            return Group(groups[0].opening, items, groups[0].closing, groups[0].is_tuple, groups[0].hug)
        if all(_is_constant(doc) for doc in docs.values()):
            return self._slot(docs, paths, role)
        raise Mismatch(role)

    def _items(
        self, parts: Mapping[int, tuple[Doc, ...]], paths: Mapping[int, _Path], role: str, start: int = 0
    ) -> tuple[Doc, ...]:
        counts = {len(items) for items in parts.values()}
        if len(counts) > 1:
            raise Mismatch(role)
        return tuple(
            self._merge({v: items[i] for v, items in parts.items()}, {v: (*paths[v], i) for v in parts}, role)
            for i in range(start, counts.pop())
        )

    def _sequential(self, docs: Mapping[int, Doc], paths: Mapping[int, _Path]) -> Doc:
        """A Sequential, some of whose layers are in some variants alone."""
        columns: list[dict[int, tuple[int, Doc]]] = []
        for v, doc in docs.items():
            columns = _aligned(columns, v, keywords_of(doc)[0])
        items: list[Doc] = []
        for column in columns:
            places = {v: (*paths[v], 1, at) for v, (at, _) in column.items()}
            item = self._merge({v: doc for v, (_, doc) in column.items()}, places, "")
            items.append(item if len(column) == len(docs) else Maybe(item, frozenset(column)))
        return Join(("nn.Sequential", Group("(", tuple(items), ")", hug=True)))

    def _call(self, docs: Mapping[int, Doc], paths: Mapping[int, _Path]) -> Doc:
        if all(doc.parts[0] == "nn.Sequential" for doc in docs.values()):  # type: ignore[union-attr]
            start = len(self.rows)
            try:
                if len({len(doc.parts[1].items) for doc in docs.values()}) == 1:  # type: ignore[union-attr]
                    return self._any_call(docs, paths)
            except Mismatch:
                del self.rows[start:], self._owners[start:]
            return self._sequential(docs, paths)
        return self._any_call(docs, paths)

    def _any_call(self, docs: Mapping[int, Doc], paths: Mapping[int, _Path]) -> Doc:
        functions = {v: doc.parts[0] for v, doc in docs.items()}  # type: ignore[union-attr]
        names = [flat(function) for function in functions.values()]
        calls = {v: keywords_of(doc) for v, doc in docs.items()}
        if len({len(positional) for positional, _ in calls.values()}) > 1:
            raise Mismatch(names[0])
        if len(set(names)) == 1:
            function = self._merge(functions, {v: (*paths[v], 0) for v in docs}, "")
        elif all(name.startswith("nn.") for name in names) and len({tuple(k) for _, k in calls.values()}) == 1:
            function = self._slot(functions, {v: (*paths[v], 0) for v in docs}, "layer")
        else:
            raise Mismatch(names[0])
        items: list[Doc] = []
        for i in range(len(next(iter(calls.values()))[0])):
            given = {v: positional[i][1] for v, (positional, _) in calls.items()}
            items.append(self._merge(given, {v: (*paths[v], 1, calls[v][0][i][0]) for v in docs}, ""))
        for name in united([list(keywords) for _, keywords in calls.values()]):
            items.append(Join((f"{name}=", self._keyword(name, names[0], calls, paths))))
        return Join((function, Group("(", tuple(items), ")", hug=True)))

    def _keyword(
        self,
        name: str,
        function: str,
        calls: Mapping[int, tuple[list[tuple[int, Doc]], dict[str, tuple[int, Doc]]]],
        paths: Mapping[int, _Path],
    ) -> Doc:
        given = {v: keywords[name] for v, (_, keywords) in calls.items() if name in keywords}
        places = {v: (*paths[v], 1, at, 1) for v, (at, _) in given.items()}
        if len(given) == len(calls):
            return self._merge({v: doc for v, (_, doc) in given.items()}, places, name)
        default = self._default(function, name)
        if default is MISSING or not all(_is_constant(doc) for _, doc in given.values()):
            raise Mismatch(name)
        docs: dict[int, Doc | list[Any]] = {v: given[v][1] if v in given else [default] for v in calls}
        return self._slot(docs, places, name)

    def _default(self, function: str, name: str) -> Any:
        own = self._defaults.get(function)
        if own is not None:
            return own.get(name, MISSING)
        return _torch_defaults(function).get(name, MISSING) if function.startswith("nn.") else MISSING


def _aligned(
    columns: list[dict[int, tuple[int, Doc]]], variant: int, items: list[tuple[int, Doc]]
) -> list[dict[int, tuple[int, Doc]]]:
    """Layers in columns, with those of one more variant put into the columns that they are most alike to, in order."""
    firsts = [next(iter(column.values()))[1] for column in columns]
    best = [[0.0] * (len(items) + 1) for _ in range(len(columns) + 1)]
    for i in reversed(range(len(columns))):
        for j in reversed(range(len(items))):
            alike = _likeness(firsts[i], items[j][1])
            best[i][j] = max(best[i + 1][j], best[i][j + 1], alike + best[i + 1][j + 1] if alike else 0.0)
    made: list[dict[int, tuple[int, Doc]]] = []
    i = j = 0
    while i < len(columns) or j < len(items):
        alike = _likeness(firsts[i], items[j][1]) if i < len(columns) and j < len(items) else 0.0
        if alike and best[i][j] == alike + best[i + 1][j + 1]:
            made.append(columns[i] | {variant: items[j]})
            i, j = i + 1, j + 1
        elif j == len(items) or (i < len(columns) and best[i][j] == best[i + 1][j]):
            made.append(columns[i])
            i += 1
        else:
            made.append({variant: items[j]})
            j += 1
    return made


def _likeness(one: Doc, other: Doc) -> float:
    """How alike two layers are made: 0 for layers of other kinds."""
    if not is_call(one) or not is_call(other):
        return float(one == other)
    names = flat(one.parts[0]), flat(other.parts[0])  # type: ignore[union-attr]
    (_, ours), (_, theirs) = keywords_of(one), keywords_of(other)
    if names[0] != names[1]:
        both = (
            all(name.startswith("nn.") for name in names)
            and ours.keys() == theirs.keys()
            and not ours.keys() - {"inplace"}
        )
        return 0.5 if both else 0.0
    equal = sum(flat(ours[key][1]) == flat(theirs[key][1]) for key in ours.keys() & theirs.keys())
    return 1 + (len(ours.keys() & theirs.keys()) + equal / 8) / max(1, len(ours.keys() | theirs.keys()))


@functools.cache
def _torch_defaults(function: str) -> dict[str, Any]:
    kind = getattr(nn, function.removeprefix("nn."), None)
    if kind is None:
        return {}
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str))}


def is_call(doc: Doc) -> bool:
    """Whether an expression is a call, as `layout.call` writes it."""
    return (
        isinstance(doc, Join)
        and len(doc.parts) == 2
        and isinstance(doc.parts[1], Group)
        and doc.parts[1].opening == "("
    )


def keywords_of(doc: Doc) -> tuple[list[tuple[int, Doc]], dict[str, tuple[int, Doc]]]:
    """The positional arguments of a call with their places, and the others by name."""
    positional: list[tuple[int, Doc]] = []
    keywords: dict[str, tuple[int, Doc]] = {}
    for i, item in enumerate(doc.parts[1].items):  # type: ignore[union-attr]
        if isinstance(item, Join) and isinstance(item.parts[0], str) and re.fullmatch(r"\w+=", item.parts[0]):
            keywords[item.parts[0][:-1]] = i, item.parts[1]
        else:
            positional.append((i, item))
    return positional, keywords


def united(lists: Sequence[list[str]]) -> list[str]:
    """Names in an order that keeps that of every list, as far as they agree."""
    merged: list[str] = []
    for names in lists:
        at = 0
        for name in names:
            if name in merged:
                at = max(at, merged.index(name) + 1)
            else:
                merged.insert(at, name)
                at += 1
    return merged


def _child(doc: Doc, step: int | str) -> Doc:
    assert isinstance(step, int)
    match doc:
        case Join(parts) | Group(_, parts) | Slice(parts):
            return parts[step]
        case Repeat(inner, count):
            return (inner, count)[step]
    raise AssertionError(doc)


def _is_constant(doc: Doc) -> bool:
    match doc:
        case str():
            return doc in ("True", "False", "None") or doc[:1] in ('"', "'")
        case Number():
            return True
        case Group(opening, items):
            return opening in ("(", "[") and all(map(_is_constant, items))
    return False


def _is_list(doc: Group) -> bool:
    """Whether brackets hold several constants, which a reader takes as one: the axes of a permutation."""
    return (doc.opening == "[" or doc.is_tuple) and len(doc.items) > 1 and _is_constant(doc)


def _value(doc: Doc) -> Any:
    if isinstance(doc, Number):
        return Argument(doc.value, doc.argument) if doc.argument else doc.value
    if _is_constant(doc) and not flat(doc).startswith("["):
        return ast.literal_eval(flat(doc))
    return Text(flat(doc), doc)


def show(value: Any, role: str = "") -> Doc:
    """The expression of a slot's value."""
    if isinstance(value, Argument):
        return Number(value.value, role, value.argument)
    return value.doc if isinstance(value, Text) else literal(value, role)
