"""The channels of a tensor as a list of parts, each a variable; what operators do to channels relates such lists.

A concatenation joins lists, a slice or a split cuts one, an addition makes two of them equal part by part: where they
are cut at different channels, both are cut at all of them. So a block that adds to a part of its channels, or norms
the halves of a map, needs no rule of its own, and parts always add up to the whole.

Beside every part stands how many channels it is in the bottom-up network, as far as this list goes. Only proportions
count: a map that comes from another stage may have had another width there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

__all__ = ["Channels", "Part", "cut", "equal_parts", "equate", "fix", "fresh", "parts_of", "want", "width_of"]


class Part:
    """Some neighbouring channels that no operator tells apart.

    Attributes:
        width: how many they are in the top-down network; None until it is known.
        default: the width if nothing else says; None: something must.
        least: the fewest that they may be.
        multiple: what their number is a multiple of.
        consists: the parts that it turned out to be, with their shares of it; None while it is one.
    """

    def __init__(self, width: int | None = None, default: int | None = None, least: int = 1) -> None:
        self.width, self.default, self.least, self.multiple = width, default, least, 1
        self.consists: Channels | None = None


Channels = list[tuple[Part, Fraction]]


def fresh(number: int, width: int | None = None, default: int | None = None, least: int = 1) -> Channels:
    """Channels that are one part, `number` of them in the bottom-up network; none if there are none."""
    return [(Part(width, default, least), Fraction(number))] if number else []


def leaves(channels: Channels) -> Channels:
    """The parts that a list has come to consist of."""
    found: Channels = []
    for part, number in channels:
        if part.consists is None:
            found.append((part, number))
        else:
            part.consists = leaves(part.consists)
            found.extend((p, share if number == 1 else share * number) for p, share in part.consists)
    return found


def parts_of(channels: Channels) -> Counter[Part]:
    """The parts that a list has come to consist of, and how often each is in it."""
    return Counter(part for part, _ in leaves(channels))


def width_of(channels: Channels) -> int | None:
    """How many channels these are in the top-down network; None while that is not known."""
    total = 0
    for part, _ in leaves(channels):
        width = part.width if part.width is not None else part.default
        if width is None:
            return None
        total += width
    return total


def cut(channels: Channels, at: int, of: int) -> tuple[Channels, Channels]:
    """Divide a list behind its channel `at`, where it has `of` of them in the bottom-up network."""
    parts = leaves(channels)
    rest = Fraction(at, of) * _total(parts)
    for i, (part, number) in enumerate(parts):
        if rest <= 0:
            return parts[:i], parts[i:]
        if rest < number:
            before, after = _split(part, number, rest)
            return [*parts[:i], before], [after, *parts[i + 1 :]]
        rest -= number
    return parts, []


def _total(channels: Channels) -> Fraction:
    return sum((number for _, number in channels), Fraction())


def _split(part: Part, number: Fraction, at: Fraction) -> tuple[tuple[Part, Fraction], tuple[Part, Fraction]]:
    share = at / number
    one, other = Part(least=0), Part(least=0)
    for name in ("width", "default"):
        known = getattr(part, name)
        if known is not None:
            setattr(one, name, round(known * share))
            setattr(other, name, known - round(known * share))
    part.consists = [(one, share), (other, 1 - share)]
    return (one, at), (other, number - at)


def equal_parts(channels: Channels, number: int) -> list[Channels]:
    """Divide channels into a number of parts of one width."""
    part = Part()
    share = _total(channels) / number
    equate(channels, [(part, share)] * number)
    return [[(part, share)]] * number


def equate(one: Channels, other: Channels) -> None:
    """Make two lists one, part by part; lists that cannot be laid side by side are left to the check of shapes."""
    if one is other:
        return
    one, other = leaves(one), leaves(other)
    if not one or not other:
        return
    if len(one) == len(other) == 1:
        if one[0][0] is not other[0][0]:
            _unite(one[0][0], other[0][0])
        return
    if len(one) == len(other) and _total(one) != _total(other):
        for (mine, _), (its, _) in zip(one, other, strict=True):
            equate([(mine, Fraction(1))], [(its, Fraction(1))])
        return
    scale = _total(one) / _total(other)
    _lay_together(one[::-1], [(part, number * scale) for part, number in reversed(other)])


def _lay_together(one: Channels, other: Channels) -> None:
    """Cut two lists, last part first, at each other's ends, and make what then lies side by side one."""
    while one and other:
        (mine, number), (its, its_number) = _take(one), _take(other)
        if mine is its:
            continue
        size = min(number, its_number)
        if number > size:
            (mine, _), rest = _split(mine, number, size)
            one.append(rest)
        elif its_number > size:
            (its, _), rest = _split(its, its_number, size)
            other.append(rest)
        _unite(mine, its)


def _take(stack: Channels) -> tuple[Part, Fraction]:
    parts = leaves([stack.pop()])
    stack.extend(parts[:0:-1])
    return parts[0]


def _unite(one: Part, other: Part) -> None:
    """Make two parts one; a known width wins."""
    if one.width is None and other.width is not None:
        one, other = other, one
    one.least = max(one.least, other.least)
    one.multiple = math.lcm(one.multiple, other.multiple)
    if one.default is None or other.default is None:
        one.default = None
    other.consists = [(one, Fraction(1))]


def fix(channels: Channels, width: int) -> None:
    """Give channels that do not follow the widths their number."""
    parts = parts_of(channels)
    if len(parts) == 1:
        (part,) = parts
        part.width = width if part.width is None else part.width


def want(channels: Channels, total: int, multiples: Callable[[Part], Sequence[tuple[Channels, int]]]) -> None:
    """Give the parts of a list that are not known yet widths that add up to `total`, in proportion.

    The widest takes what rounding leaves. `multiples` says of a part in which lists it is that must be multiples.
    """
    parts = leaves(channels)
    counts = Counter(part for part, _ in parts)
    unknown = {part: number for part, number in reversed(parts) if part.width is None}
    if not unknown:
        return
    rest = total - sum((part.width or 0) * n for part, n in counts.items())
    whole = sum(number * counts[part] for part, number in unknown.items())
    for part, number in unknown.items():
        part.width = _at_least(part, round(rest * number / whole / part.multiple) * part.multiple)
    widest = max(reversed(unknown), key=unknown.__getitem__)
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
    total, count = width_of(channels), parts_of(channels)[part]
    if total is None or part.width is None:
        return
    steps = [step * part.multiple for k in range(multiple) for step in (k, -k)]
    fitting = [s for s in steps if (total + s * count) % multiple == 0 and part.width + s >= part.least]
    part.width += fitting[0] if fitting else 0
