"""The channels of a tensor as a list of parts, each a variable; what operators do to channels relates such lists.

A concatenation joins lists, a slice or a split cuts one, an addition makes two of them equal part by part: where they
are cut at different channels, both are cut at all of them. So a block that adds to a part of its channels, or norms
the halves of a map, needs no rule of its own, and parts always add up to the whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

__all__ = ["Channels", "Part", "cut", "equate", "leaves", "nominal", "want", "width_of"]


class Part:
    """Some neighbouring channels that no operator tells apart.

    Attributes:
        nominal: how many they are in the bottom-up network; 0 where it has none such.
        width: how many they are here; None until it is known.
        default: the width if nothing else says; None: something must.
        least: the fewest that they may be.
        multiple: what their number is a multiple of.
    """

    def __init__(self, nominal: int, width: int | None = None, default: int | None = None, least: int = 1) -> None:
        self.nominal, self.width, self.default, self.least, self.multiple = nominal, width, default, least, 1
        self._is: list[Part] | None = None  # the parts that it turned out to be


Channels = list[Part]


def leaves(channels: Sequence[Part]) -> Channels:
    """The parts that a list has come to consist of."""
    found: Channels = []
    for part in channels:
        if part._is is None:
            found.append(part)
        else:
            part._is = leaves(part._is)
            found.extend(part._is)
    return found


def nominal(channels: Sequence[Part]) -> int:
    """How many channels these are in the bottom-up network."""
    return sum(part.nominal for part in leaves(channels))


def width_of(channels: Sequence[Part]) -> int | None:
    """How many channels these are; None while that is not known."""
    total = 0
    for part in leaves(channels):
        width = part.width if part.width is not None else part.default
        if width is None:
            return None
        total += width
    return total


def cut(channels: Sequence[Part], at: int, of: int) -> tuple[Channels, Channels]:
    """Divide a list behind its channel `at`, counted in `of` channels, as many as the bottom-up network has there."""
    parts = leaves(channels)
    missing = [part for part in parts if not part.nominal and part.width is None]
    if len(missing) == 1:  # a layer of the top-down network alone
        missing[0].nominal = max(0, of - nominal(parts))
    total = nominal(parts)
    rest = at if total == of else round(at * total / of)
    for i, part in enumerate(parts):
        if rest <= 0:
            return parts[:i], parts[i:]
        if rest < part.nominal:
            before, after = _split(part, rest)
            return [*parts[:i], before], [after, *parts[i + 1 :]]
        rest -= part.nominal
    return parts, []


def _split(part: Part, at: int) -> tuple[Part, Part]:
    sides = (at, part.nominal - at)
    if part.width is not None:
        first = at if part.width == part.nominal else round(part.width * at / part.nominal)
        widths: tuple[int | None, int | None] = first, part.width - first
    else:
        widths = None, None
    defaults = sides if part.default is not None else (None, None)
    one, other = (Part(side, width, default, 0) for side, width, default in zip(sides, widths, defaults, strict=True))
    part._is = [one, other]
    return one, other


def equate(one: Sequence[Part], other: Sequence[Part]) -> None:
    """Make two lists one, part by part; lists that cannot be laid side by side are left to the check of shapes."""
    one, other = leaves(one), leaves(other)
    if not one or not other:
        return
    if len(one) == len(other) == 1:
        _unite(one[0], other[0])
    elif nominal(one) == nominal(other) and all(part.nominal for part in (*one, *other)):
        _lay_together(one, other)
    elif len(one) == 1 or len(other) == 1:
        single, several = (one[0], other) if len(one) == 1 else (other[0], one)
        if single not in several and single.width is None:
            single._is = several
    elif len(one) == len(other):
        for mine, its in zip(one, other, strict=True):
            equate([mine], [its])


def _lay_together(one: Channels, other: Channels) -> None:
    """Cut two lists of as many channels at each other's ends, and make what then lies side by side one."""
    one, other = one[::-1], other[::-1]
    while one and other:
        mine, its = _take(one), _take(other)
        if mine is its:
            continue
        size = min(mine.nominal, its.nominal)
        if mine.nominal > size:
            mine, rest = _split(mine, size)
            one.append(rest)
        elif its.nominal > size:
            its, rest = _split(its, size)
            other.append(rest)
        _unite(mine, its)


def _take(stack: Channels) -> Part:
    parts = leaves([stack.pop()])
    stack.extend(parts[:0:-1])
    return parts[0]


def _unite(one: Part, other: Part) -> None:
    """Make two parts one; a known width wins."""
    if one is other:
        return
    if one.width is None:
        one, other = other, one
    one.nominal = one.nominal or other.nominal
    one.least = max(one.least, other.least)
    one.multiple = math.lcm(one.multiple, other.multiple)
    if one.default is None or other.default is None:
        one.default = None
    other._is = [one]


def want(channels: Sequence[Part], total: int, multiples: Callable[[Part], Sequence[tuple[Channels, int]]]) -> None:
    """Give the parts of a list that are not known yet widths that add up to `total`, in proportion.

    The widest takes what rounding leaves. `multiples` says of a part in which lists it is that must be multiples.
    """
    counts = Counter(leaves(channels))
    unknown = [part for part in counts if part.width is None]
    if not unknown:
        return
    rest = total - sum((part.width or 0) * n for part, n in counts.items())
    whole = sum(part.nominal * counts[part] for part in unknown)
    for part in unknown:
        share = rest * part.nominal / whole if whole else rest / sum(counts[p] for p in unknown)
        part.width = _at_least(part, round(share / part.multiple) * part.multiple)
    widest = max(unknown, key=lambda part: part.nominal)
    assert widest.width is not None
    over, count = rest - sum((part.width or 0) * counts[part] for part in unknown), counts[widest]
    if len(unknown) > 1 and over % (count * widest.multiple) == 0:
        widest.width = _at_least(widest, widest.width + over // count)
    for together, multiple in multiples(widest):
        _round(widest, together, multiple)


def _at_least(part: Part, width: int) -> int:
    return max(-(-part.least // part.multiple) * part.multiple, width)


def _round(part: Part, channels: Channels, multiple: int) -> None:
    """Change one part so that a list of several is a multiple, as little as possible."""
    total, count = width_of(channels), Counter(leaves(channels))[part]
    if total is None or part.width is None:
        return
    steps = [step * part.multiple for k in range(multiple) for step in (k, -k)]
    fitting = [s for s in steps if (total + s * count) % multiple == 0 and part.width + s >= part.least]
    part.width += fitting[0] if fitting else 0
