"""Modules that numbers name, as one expression: a comprehension where they differ in one number alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from td_compiler.emission.layout import WIDTH, Doc, Group, Join, Number, atoms, call, flat, substitute

__all__ = ["by_number"]

_ROOM = WIDTH - 12  # what a line inside an expression of `__init__` has
_CHANNELS = ("channels", "out_channels")


def by_number(function: str, modules: Mapping[str, Doc]) -> Doc:
    """The call of `function` on a dict from numbers to modules."""
    items = tuple(Join((name, ": ", module)) for name, module in modules.items())
    plain = call(function, Group("{", items, "}"))
    shapes = {flat(substitute(module, lambda atom: "_")) for module in modules.values()}
    if len(items) < 3 or len(shapes) > 1 or len(flat(plain)) < _ROOM - 12:
        return plain
    numbers = [[atom for atom in atoms(module) if isinstance(atom, Number)] for module in modules.values()]
    columns = [[number.value for number in column] for column in zip(*numbers, strict=True)]
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if not varying or any(columns[i] != columns[varying[0]] for i in varying):
        return plain
    role = numbers[0][varying[0]].role
    word = "width" if role in _CHANNELS or not role else role
    places = count()
    one = substitute(next(iter(modules.values())), lambda atom: word if next(places) in varying else atom)
    values = ", ".join(f"{name}: {value}" for name, value in zip(modules, columns[varying[0]], strict=True))
    line = f"{{s: {flat(one)} for s, {word} in {{{values}}}.items()}}"
    return call(function, line) if len(line) <= _ROOM else plain
