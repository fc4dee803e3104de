"""How a cost grows with a size: the exponent of the power law that fits best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PowerLaw", "fit_power"]


@dataclass(frozen=True)
class PowerLaw:
    """cost = factor * size ** exponent.

    Attributes:
        factor, exponent: of the line that fits best in a plot with two logarithmic axes, by least squares.
        error: the standard error of the exponent; None for two points, which every line fits.
    """

    factor: float
    exponent: float
    error: float | None

    def __str__(self) -> str:
        """`1.02 ± 0.01`, the exponent."""
        return f"{self.exponent:.2f}" if self.error is None else f"{self.exponent:.2f} ± {self.error:.2f}"

    def __call__(self, size: float) -> float:
        """The cost of a size by this law."""
        return self.factor * size**self.exponent


def fit_power(sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw | None:
    """The power law that fits; None for fewer than two sizes, or costs of 0."""
    if len(set(sizes)) < 2 or min(costs) <= 0:
        return None
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    count, x_mean, y_mean = len(xs), sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    exponent = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - y_mean - exponent * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    error = math.sqrt(rest / (count - 2) / spread) if count > 2 else None
    return PowerLaw(math.exp(y_mean - exponent * x_mean), exponent, error)
