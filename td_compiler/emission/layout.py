"""Expressions as small trees, and their layout in lines of at most 120 columns, as ruff's formatter keeps them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

__all__ = [
    *(
        "WIDTH",
        "Atom",
        "Doc",
        "Group",
        "Join",
        "Maybe",
        "Name",
        "Number",
        "Repeat",
        "Slice",
        "Slot",
        "Statement",
        "Value",
    ),
    *("call", "flat", "has_literal", "lay_out", "literal", "quoted"),
]

WIDTH = 120


class Name(str):
    """The name of a value that has no literal, written as it is."""


@dataclass(frozen=True)
class Number:
    """A number that may differ between the instances of a class; `role` is the parameter that it is given for.

    `argument`: the argument of the network's class that it is, such as `num_classes`; "" for most.
    """

    value: int | float
    role: str = ""
    argument: str = ""


@dataclass(frozen=True)
class Value:
    """The value of a graph's node, before it has a name."""

    node: fx.Node


@dataclass(frozen=True)
class Slot:
    """The place of a template where its instances differ, by number."""

    index: int


@dataclass(frozen=True)
class Join:
    """Parts written one after the other."""

    parts: tuple[Doc, ...]


@dataclass(frozen=True)
class Group:
    """Items in brackets, separated by commas: on one line where they fit, else one a line.

    `hug`: where they do not fit behind what stands before, they may still share a line of their own.
    """

    opening: str
    items: tuple[Doc, ...]
    closing: str
    is_tuple: bool = False
    hug: bool = False


@dataclass(frozen=True)
class Slice:
    """The bounds of a slice, and its step if it has one; "" for what is left out."""

    bounds: tuple[Doc, ...]


@dataclass(frozen=True)
class Maybe:
    """An item of a call's arguments that is there in some variants alone, `when`: under a condition."""

    doc: Doc
    when: frozenset[int]
    condition: str = ""


@dataclass(frozen=True)
class Repeat:
    """Items of a call's arguments that are written once; in the expression `i` counts them, if it `counts`."""

    doc: Doc
    count: Doc
    counts: bool = False

    @property
    def ending(self) -> str:
        """What stands behind the expression."""
        return f"for {'i' if self.counts else '_'} in range({flat(self.count)})"


Doc: TypeAlias = str | Number | Value | Slot | Join | Group | Slice | Maybe | Repeat


Atom: TypeAlias = Number | Value | Slot


@dataclass(frozen=True)
class Statement:
    """One statement, `prefix` and expression, `level` levels deeper than its function's body.

    `when`: the variants of a block in which it runs, as in `Step`; None for all.
    """

    prefix: str
    doc: Doc = ""
    level: int = 0
    when: tuple[frozenset[int], str] | None = None


def call(function: Doc, *args: Doc, **kwargs: Doc) -> Doc:
    """A call with positional and keyword arguments."""
    keywords = tuple(Join((f"{name}=", value)) for name, value in kwargs.items())
    return Join((function, Group("(", (*args, *keywords), ")", hug=True)))


def quoted(text: str) -> str:
    """A string as Python's own literal of it, in ASCII and, where it can be, in double quotes."""
    plain = ascii(text)
    return f'"{plain[1:-1]}"' if '"' not in text and plain[0] == "'" else plain


def literal(value: Any, role: str = "") -> Doc:
    """A value of a graph or of a module's attribute as an expression.

    Raises:
        TypeError: for values that have no literal.
    """
    if isinstance(value, fx.Node):
        return Value(value)
    if value is Ellipsis:
        return "..."
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if isinstance(value, torch.device):
        return call("torch.device", quoted(str(value)))
    if isinstance(value, str):
        return str(value) if isinstance(value, Name) else quoted(value)
    if isinstance(value, (int, float)):
        return Number(value, role)
    if isinstance(value, slice):
        bounds = (value.start, value.stop) if value.step is None else (value.start, value.stop, value.step)
        return Slice(tuple("" if bound is None else literal(bound) for bound in bounds))
    if isinstance(value, (tuple, list)):
        items = tuple(literal(item, role) for item in value)
        return Group("(", items, ")", is_tuple=True) if isinstance(value, tuple) else Group("[", items, "]")
    if isinstance(value, dict):
        return Group("{", tuple(Join((literal(key), ": ", literal(item))) for key, item in value.items()), "}")
    raise TypeError(f"no literal for a {type(value).__name__}")


def has_literal(value: Any) -> bool:
    """Whether a value can be written as an expression."""
    try:
        literal(value)
    except TypeError:
        return False
    return True


def _number(value: int | float) -> str:
    if isinstance(value, int):
        return repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", repr(value))


def flat(doc: Doc) -> str:
    """The expression on one line; values that have no name yet count as `x`."""
    if isinstance(doc, str):  # most are
        return doc
    if isinstance(doc, Join):
        return "".join([flat(part) for part in doc.parts])
    match doc:
        case Number(value, _, argument):
            return argument or _number(value)
        case Value():
            return "x"
        case Slot():
            return "_"
        case Repeat(inner):
            return f"*[{flat(inner)} {doc.ending}]"
        case Maybe(inner, _, condition):
            return f"*([{flat(inner)}] if {condition} else [])"
        case Group(opening, items, closing, is_tuple):
            comma = "," if is_tuple and len(items) == 1 else ""
            return opening + ", ".join(map(flat, items)) + comma + closing
        case Slice(bounds):
            return _slice([flat(bound) for bound in bounds])


def _slice(bounds: list[str]) -> str:
    """Colons stand free where a bound is more than a name or a number, which is the formatter's way."""
    space = " " if any(not re.fullmatch(r"-?\w*", bound) for bound in bounds) else ""
    text = bounds[0]
    for bound in bounds[1:]:
        text += (space if text else "") + ":" + (space + bound if bound else "")
    return text


def substitute(doc: Doc, replace: Callable[[Atom], Doc]) -> Doc:
    """The expression with its numbers, values and slots replaced, in reading order."""
    if isinstance(doc, str):  # most are
        return doc
    if isinstance(doc, (Number, Value, Slot)):
        return replace(doc)
    if isinstance(doc, Join):
        return Join(tuple([substitute(part, replace) for part in doc.parts]))
    match doc:
        case Group(opening, items, closing, is_tuple, hug):
            return Group(opening, tuple([substitute(item, replace) for item in items]), closing, is_tuple, hug)
        case Repeat(inner, count, counts):
            return Repeat(substitute(inner, replace), substitute(count, replace), counts)
        case Maybe(inner, when, condition):
            return Maybe(substitute(inner, replace), when, condition)
        case Slice(bounds):
            return Slice(tuple(substitute(bound, replace) for bound in bounds))


def atoms(doc: Doc) -> list[Atom]:
    """The numbers, values and slots of an expression, in reading order."""
    found: list[Atom] = []
    _find_atoms((doc,), found)
    return found


def _find_atoms(docs: tuple[Doc, ...], found: list[Atom]) -> None:
    for doc in docs:
        if isinstance(doc, str):  # most are
            continue
        if isinstance(doc, (Number, Value, Slot)):
            found.append(doc)
            continue
        match doc:
            case Join(parts) | Group(_, parts) | Slice(parts):
                _find_atoms(parts, found)
            case Maybe(inner):
                _find_atoms((inner,), found)
            case Repeat(inner, count):
                _find_atoms((inner, count), found)


def lay_out(prefix: str, doc: Doc, indent: int, suffix: str = "") -> list[str]:
    """The lines of `prefix` and an expression: its outermost brackets are opened as far as 120 columns need it."""
    margin = " " * indent
    line = margin + prefix + flat(doc) + suffix
    if len(line) <= WIDTH:
        return [line]
    match doc:
        case Join(parts):
            last = max((i for i, part in enumerate(parts) if isinstance(part, Group | Join)), default=-1)
            if last < 0:
                return [line]
            head = "".join(map(flat, parts[:last]))
            tail = "".join(map(flat, parts[last + 1 :]))
            return lay_out(prefix + head, parts[last], indent, tail + suffix)
        case Repeat(repeat):
            repeated = lay_out("", repeat, indent + 4)
            return [f"{margin}{prefix}*[", *repeated, f"{margin}    {doc.ending}", f"{margin}]{suffix}"]
        case Maybe(choice, _, condition):
            chosen = lay_out("", Group("[", (choice,), "]", hug=True), indent + 4)
            ending = [f"{margin}    if {condition}", f"{margin}    else []", f"{margin}){suffix}"]
            return [f"{margin}{prefix}*(", *chosen, *ending]
        case Group(opening, items, closing, hug=hug) if items:
            row = " " * 4 + margin + ", ".join(map(flat, items))
            if hug and len(row) <= WIDTH:
                return [margin + prefix + opening, row, margin + closing + suffix]
            if hug and len(items) == 1:
                inner = lay_out("", items[0], indent + 4)
                return [margin + prefix + opening, *inner, margin + closing + suffix]
            inner = [text for item in items for text in lay_out("", item, indent + 4, ",")]
            return [margin + prefix + opening, *inner, margin + closing + suffix]
        case _:
            return [line]
