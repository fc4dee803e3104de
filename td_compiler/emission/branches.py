"""Statements that run in some variants alone: below a condition, or as a choice where one line holds it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from td_compiler.emission.conditions import opposite
from td_compiler.emission.layout import WIDTH, Statement, flat

__all__ = ["grouped"]


def grouped(statements: Sequence[Statement], texts: Mapping[tuple[frozenset[int], str], str]) -> list[Statement]:
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
