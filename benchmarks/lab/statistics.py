"""When a finding counts (SPEC 10): intervals over runs and images together, pairs, several comparisons, verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    *("Array", "FEWEST_RUNS", "Estimate", "Verdict", "difference_of_means", "estimate", "holm", "mcnemar"),
    *("median_of", "sums", "verdict"),
]

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], Array]
"""From weights of runs (B, R) and of images (B, N), how often each was drawn, a value for each resample (B,)."""

Verdict = str  # of `supported`, `contradicted`, `undecided`, `not tested`

FEWEST_RUNS = 3
_RESAMPLES, _CHUNK = 4_000, 500


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value, low, high: the figure of all runs and images, and the interval.
        p: the share of resamples on the other side of zero, of both sides.
        runs, images: how many there were.
    """

    value: float
    low: float
    high: float
    p: float
    runs: int
    images: int

    def text(self, unit: str = "", digits: int = 2) -> str:
        """`-1.20 [-1.80, -0.61] points`."""
        numbers = [f"{each:+.{digits}f}" for each in (self.value, self.low, self.high)]
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]{f' {unit}' * bool(unit)}"

    def map(self, function: Callable[[float], float]) -> Estimate:
        """A growing function of it."""
        return replace(self, value=function(self.value), low=function(self.low), high=function(self.high))


def estimate(statistic: Statistic, runs: int, images: int, seed: int = 0) -> Estimate:
    """A statistic's value and its interval by bootstrap over runs and images.

    Test images are the same in every run, so both are drawn independently. So few runs vary less in a resample than
    they do in truth: the part of a resample's deviation that comes from the runs is stretched to Student's t for them.

    Raises:
        ValueError: for less than two runs.
    """
    if runs < 2:
        raise ValueError("One run has no interval.")
    from scipy.stats import norm, t

    stretch = math.sqrt(runs / (runs - 1)) * t.ppf(0.975, runs - 1) / norm.ppf(0.975)
    value = float(statistic(np.ones((1, runs)), np.ones((1, images)))[0])
    drawn = []
    for of_runs, of_images in _resamples(runs, images, np.random.default_rng(seed)):
        by_run = statistic(of_runs, np.ones((len(of_runs), images)))
        drawn.append(value + stretch * (by_run - value) + statistic(of_runs, of_images) - by_run)
    values = np.concatenate(drawn)
    low, high = np.quantile(values, (0.025, 0.975))
    below, above = ((np.sum(side) + 1) / (len(values) + 1) for side in (values <= 0, values >= 0))
    return Estimate(value, float(low), float(high), float(min(1.0, 2 * min(below, above))), runs, images)


def _resamples(runs: int, images: int, chance: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    for _ in range(_RESAMPLES // _CHUNK):
        yield tuple(  # type: ignore[misc]
            chance.multinomial(count, np.full(count, 1 / count), size=_CHUNK).astype(float) for count in (runs, images)
        )


def sums(values: NDArray[Any], of_runs: Array, of_images: Array) -> Array:
    """The weighted sums (B, ...) of values (R, N, ...)."""
    flat = values.reshape(*values.shape[:2], -1).astype(float)
    # (B, R) x (R, N, K) and (B, N): first over the images of every run, as there are few runs.
    by_run = np.stack([of_images @ run for run in flat], 1)
    total: Array = np.einsum("br,brk->bk", of_runs, by_run)
    return total.reshape(len(of_runs), *values.shape[2:])


def difference_of_means(ours: NDArray[Any], theirs: NDArray[Any]) -> Estimate:
    """Of paired values (R, N), e.g. whether each image is right: in points, i.e. per cent."""
    differences = 100 * (ours.astype(float) - theirs.astype(float))
    runs, images = differences.shape
    return estimate(lambda r, i: sums(differences, r, i) / (r.sum(1) * i.sum(1)), runs, images)


def median_of(values: Array, counted: NDArray[np.bool_]) -> Estimate:
    """The median of those values (R, N) that count, infinite ones included."""
    runs, images = values.shape
    places = np.argwhere(counted)
    order = np.argsort(values[counted], kind="stable")
    places, sorted_values = places[order], values[counted][order]

    def median(of_runs: Array, of_images: Array) -> Array:
        if not len(places):
            return np.zeros(len(of_runs))
        weights = np.cumsum(of_runs[:, places[:, 0]] * of_images[:, places[:, 1]], axis=1)
        middle = np.array([np.searchsorted(each, each[-1] / 2) for each in weights]).clip(max=len(places) - 1)
        found: Array = np.clip(sorted_values[middle], -_ENDLESS, _ENDLESS)
        return found

    found = estimate(median, runs, images)
    return found.map(lambda value: math.copysign(math.inf, value) if abs(value) >= 0.9 * _ENDLESS else value)


_ENDLESS = 1e3  # in place of infinity, so that differences are numbers


def mcnemar(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> float:
    """The exact p of paired successes (N,): whether one of both has more than the other."""
    from scipy.stats import binomtest

    only_ours, only_theirs = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    both = only_ours + only_theirs
    return float(binomtest(only_ours, both).pvalue) if both else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several comparisons, adjusted by Holm (1979), in their order."""
    adjusted, largest = [1.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


def verdict(found: Estimate, above: float = -math.inf, below: float = math.inf, near: float | None = None) -> Verdict:
    """Whether the whole interval says that a figure lies between two bounds.

    Args:
        found: the figure.
        above, below: what the claim says of it.
        near: a figure as published, which the interval must meet, too.
    """
    if found.low > above and found.high < below:
        return "supported" if near is None or found.low <= near <= found.high else "undecided"
    return "contradicted" if found.high <= above or found.low >= below else "undecided"
