"""What the `__init__` of a shared class takes: types, defaults, and what a call gives by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from td_compiler.emission.layout import flat
from td_compiler.emission.parameters import POSITIONAL
from td_compiler.emission.unify import MISSING, Argument, Text, show

__all__ = ["annotation", "leading", "usual"]

_BY_POSITION = set(POSITIONAL)


def leading(names: Sequence[str], parameters: Sequence[str]) -> list[str]:
    """The arguments that are given by position: the first ones, if they say how wide a block is, or one alone.

    `names` are those that are given, in the order of the `parameters`: behind one that is left out none has its place.
    """
    pairs = zip(names, parameters, strict=False)
    first = [name for name, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if len(first) == len(names) == 1 and first[0] in _BY_POSITION | {"hidden"}:
        return first
    return [name for i, name in enumerate(first) if set(first[: i + 1]) <= _BY_POSITION]


def annotation(values: Sequence[Any], defaults: Mapping[str, Any], name: str) -> str:
    """A parameter's type, with its default where it has one, from what the instances give it."""
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


def usual(name: str, values: Sequence[Any]) -> list[Any]:
    """What a parameter is where a call does not say: what at least half of the instances have; [] for none."""
    if any(value is MISSING for value in values):
        return [None]
    if name in _BY_POSITION or "channels" in name or "hidden" in name or len(values) < 3:
        return [False] if all(isinstance(value, bool) for value in values) else []
    best = max(values, key=lambda value: (values.count(value), repr(value)))
    # A default that is a layer, or a list, would be one for all calls.
    is_made = isinstance(best, Argument) or (isinstance(best, Text) and ("(" in best.text or best.text[0] == "["))
    return [best] if 2 * values.count(best) >= len(values) and not is_made else []
