"""Layers in a row that differ in their place alone are written once: `[Layer(64 + i * 32) for i in range(6)]`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from td_compiler.emission.layout import Doc, Group, Join, Number, Repeat, Slice

__all__ = ["family", "fold_runs", "numbered"]

_FEWEST = 3


def fold_runs(items: Sequence[Doc]) -> list[Doc]:
    """Three or more items in a row whose numbers go up by the same steps, as one."""
    folded: list[Doc] = []
    start = 0
    while start < len(items):
        end = start + _FEWEST
        item = family(items[start:end]) if end <= len(items) else None
        if item is None:
            folded.append(items[start])
            start += 1
            continue
        while end < len(items) and (longer := family(items[start : end + 1])) is not None:
            item, end = longer, end + 1
        folded.append(Repeat(item, Number(end - start, "depth"), item != items[start]))
        start = end
    return folded


def family(items: Sequence[Doc]) -> Doc | None:
    """One expression for several, in which `i` counts them from 0; None if there is none."""
    first = items[0]
    if all(item == first for item in items):
        return first
    if not all(type(item) is type(first) for item in items):
        return None
    match first:
        case Number(value, role):
            values = [item.value for item in items]  # type: ignore[union-attr]
            if any(type(v) is not int for v in values) or any(item.argument for item in items):  # type: ignore[union-attr]
                return None
            step = int(values[1] - value)
            if any(v != value + i * step for i, v in enumerate(values)):
                return None
            return Join((first, " + i * " if step > 0 else " - i * ", Number(abs(step), f"{role}_step")))
        case Join():
            made = _families([item.parts for item in items])  # type: ignore[union-attr]
            return Join(made) if made is not None else None
        case Group(opening, _, closing, is_tuple, hug):
            if any((item.opening, item.closing) != (opening, closing) for item in items):  # type: ignore[union-attr]
                return None
            made = _families([item.items for item in items])  # type: ignore[union-attr]
            return Group(opening, made, closing, is_tuple, hug) if made is not None else None
        case Slice():
            return None
    return None


def _families(rows: Sequence[tuple[Doc, ...]]) -> tuple[Doc, ...] | None:
    if len({len(row) for row in rows}) != 1:
        return None
    made = [family(column) for column in zip(*rows, strict=True)]
    return None if any(each is None for each in made) else tuple(each for each in made if each is not None)


def numbered(names: Sequence[str]) -> tuple[str, int] | None:
    """The word and the first number of names like `layer1`, `layer2`, ...; None for other names."""
    found = [re.fullmatch(r"([A-Za-z_]\w*?)(\d+)", name) for name in names]
    if not names or any(match is None for match in found):
        return None
    word, start = found[0][1], int(found[0][2])  # type: ignore[index]
    return (word, start) if list(names) == [f"{word}{start + i}" for i in range(len(names))] else None
