"""Numbers that follow the batch or the image: sizes that know of which tensor they are, and what is made of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from td_compiler.capture.recording import Value

__all__ = ["Dim", "Made", "Size", "Term", "explain", "term_of"]


@dataclass(frozen=True, eq=False)
class Size:
    """The extent of a tensor along one of its axes."""

    value: Value
    axis: int


@dataclass(frozen=True, eq=False)
class Made:
    """Arithmetic on sizes: `function(*operands)`, an operand being a term or a plain number."""

    function: Callable[..., Any]
    operands: tuple[Term | float, ...]


Term = Size | Made


class Dim(int):
    """A size as user code sees it: a plain int in every way, that knows the term that it is.

    Arithmetic with other ints makes a `Dim` again; anything else (division, `int()`, `math`) makes plain numbers, which
    :func:`explain` has to understand from two runs.
    """

    term: Term

    def __new__(cls, number: int, term: Term) -> Dim:
        self = super().__new__(cls, number)
        self.term = term
        return self

    def __neg__(self) -> Dim:
        return Dim(-int(self), Made(operator.neg, (self.term,)))

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _arithmetic(name: str, function: Callable[..., Any]) -> None:
    """Give `Dim` an operator and its reflected form."""
    plain, reflected = getattr(int, f"__{name}__"), getattr(int, f"__r{name}__")

    def forward(self: Dim, other: Any) -> Any:
        number = plain(self, other)
        return Dim(number, Made(function, (self.term, term_of(other)))) if type(number) is int else number

    def backward(self: Dim, other: Any) -> Any:
        number = reflected(self, other)
        return Dim(number, Made(function, (term_of(other), self.term))) if type(number) is int else number

    setattr(Dim, f"__{name}__", forward)
    setattr(Dim, f"__r{name}__", backward)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _arithmetic(_name, getattr(operator, _name))


def term_of(number: Any) -> Any:
    """The term of a `Dim`; any other number as it is."""
    return number.term if isinstance(number, Dim) else number


Known = tuple[Term, int, int]
"""A size: its term, how large it is in one run, and in another."""


def explain(number: float, other: float, known: Sequence[Known]) -> Term | None:
    """The term that gives `number` in one run and `other` in a second one, in which batch and image had other sizes.

    Args:
        known: the sizes at hand, the likeliest first.

    Returns:
        A size, or a simple piece of arithmetic on one or two of them; None where nothing simple gives both numbers.
    """
    forms = _whole if isinstance(number, int) and isinstance(other, int) else _real
    singles = [(term, a, b) for term, a, b in known if a != b]
    products = [
        (Made(operator.mul, (one, two)), a * c, b * d)
        for i, (one, a, b) in enumerate(singles)
        for two, c, d in singles[i + 1 :]
    ]
    for dims in (singles, products):
        for dim in dims:
            for term, first, second in forms(dim, number, other):
                if math.isclose(first, number, rel_tol=1e-12) and math.isclose(second, other, rel_tol=1e-12):
                    return term
    return None


def _whole(dim: Known, number: float, other: float) -> Iterator[tuple[Term, float, float]]:
    term, a, b = dim
    yield term, a, b
    if number:
        share = a // int(number)
        for k in {share, share - 1, share + 1} - {0, 1}:
            if k > 0:
                yield Made(operator.floordiv, (term, k)), a // k, b // k
                grown = Made(operator.add, (term, k - 1))
                yield Made(operator.floordiv, (grown, k)), (a + k - 1) // k, (b + k - 1) // k
        if a and number % a == 0:
            k = int(number) // a
            yield Made(operator.mul, (term, k)), a * k, b * k
    if number - a == other - b:
        yield Made(operator.add, (term, int(number) - a)), number, other
    if number + a == other + b:
        yield Made(operator.sub, (int(number) + a, term)), number, other


def _real(dim: Known, number: float, other: float) -> Iterator[tuple[Term, float, float]]:
    term, a, b = dim
    for power in (1.0, -1.0, 0.5, -0.5):
        if a > 0 and b > 0:
            made = term if power == 1 else Made(operator.pow, (term, power))
            factor = number / a**power
            if math.isclose(factor, 1):
                yield made, a**power, b**power
            else:
                yield Made(operator.mul, (made, factor)), a**power * factor, b**power * factor
