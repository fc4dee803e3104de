"""How a cost grows with a size: the exponent of the power law that fits best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    logs = np.log(sizes), np.log(costs)
    if len(sizes) == 2:
        exponent, offset = np.polyfit(*logs, 1)
        return PowerLaw(math.exp(offset), float(exponent), None)
    (exponent, offset), covariance = np.polyfit(*logs, 1, cov=True)
    return PowerLaw(math.exp(offset), float(exponent), math.sqrt(covariance[0, 0]))
