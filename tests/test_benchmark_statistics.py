"""Intervals, tests and verdicts (SPEC 10) against known coverage, other libraries and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from td_compiler.benchmarks.lab.statistics import (
    Estimate,
    difference_of_means,
    estimate,
    holm,
    mcnemar,
    median_of,
    sums,
    verdict,
)


@pytest.mark.parametrize(("of_runs", "of_images"), [(0.0, 0.3), (0.02, 0.1), (0.02, 0.3)])
def test_intervals_hold_the_truth_as_often_as_they_say(of_runs: float, of_images: float) -> None:
    """Three runs on the same 40 images: 95 % of intervals, not the 75 % of drawing from three runs as they are."""
    chance, truth, held = np.random.default_rng(0), 0.01, []
    for _ in range(120):
        runs, images = chance.normal(0, of_runs, (3, 1)), chance.normal(0, of_images, (1, 40))
        values = truth + runs + images + chance.normal(0, 0.05, (3, 40))
        found = difference_of_means(values, np.zeros((3, 40)))
        held.append(found.low <= 100 * truth <= found.high)
    assert np.mean(held) >= 0.9


def test_many_runs_give_the_interval_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(0.02, 0.1, (40, 1)) + np.zeros((40, 30))
    found = difference_of_means(values, np.zeros_like(values))
    means = 100 * values[:, 0]
    expected = stats.t.interval(0.95, 39, means.mean(), stats.sem(means))
    assert (found.value, found.runs, found.images) == (pytest.approx(means.mean()), 40, 30)
    assert (found.low, found.high) == pytest.approx(expected, rel=0.1)
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue, abs=0.03)


def test_one_run_has_no_interval() -> None:
    with pytest.raises(ValueError, match="One run"):
        difference_of_means(np.zeros((1, 5)), np.zeros((1, 5)))


def test_weighted_sums_and_medians_are_those_of_the_drawn_values() -> None:
    chance = np.random.default_rng(2)
    values, counted = chance.normal(size=(3, 7, 2)), chance.random((3, 7)) < 0.7
    of_runs, of_images = np.array([[2.0, 0, 1]]), np.array([[1.0, 0, 2, 1, 1, 2, 0]])
    drawn = np.repeat(np.repeat(values, of_runs[0].astype(int), 0), of_images[0].astype(int), 1)
    np.testing.assert_allclose(sums(values, of_runs, of_images)[0], drawn.sum((0, 1)))
    few = np.where(chance.random((3, 7)) < 0.2, np.inf, values[..., 0])
    assert median_of(few, counted).value == np.quantile(few[counted], 0.5, method="inverted_cdf")
    never = median_of(np.full((3, 7), np.inf), counted)
    assert (never.value, never.low, never.high) == (math.inf, math.inf, math.inf)


def test_holm_and_mcnemar() -> None:
    """Holm (1979) by his own rule; McNemar's exact test is the binomial of the pairs that differ."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
    ours, theirs = np.array([1] * 9 + [0] * 11, bool), np.array([1] * 3 + [0] * 6 + [1] + [0] * 10, bool)
    assert mcnemar(ours, theirs) == pytest.approx(2 * (1 + 7) / 2**7), "six against one"
    assert mcnemar(ours, ours) == 1


def test_verdicts() -> None:
    def found(low: float, high: float) -> Estimate:
        return Estimate((low + high) / 2, low, high, 0.01, 3, 10)

    assert verdict(found(0.1, 2), above=0) == "supported"
    assert verdict(found(-2, -0.1), above=0) == "contradicted"
    assert verdict(found(-0.1, 2), above=0) == "undecided"
    assert verdict(found(-0.4, 2), above=-0.5) == "supported", "on par is not worse by half a point"
    assert verdict(found(-6, -5), below=0, near=-5.7) == "supported"
    assert verdict(found(-3, -2), below=0, near=-5.7) == "undecided"
    assert verdict(found(2, 3), below=0, near=-5.7) == "contradicted"
    assert found(0.1, 2).text("points") == "+1.05 [+0.10, +2.00] points"


def test_an_estimate_is_the_same_every_time() -> None:
    values = np.random.default_rng(3).random((3, 20))
    both = [estimate(lambda r, i: sums(values, r, i) / (r.sum(1) * i.sum(1)), 3, 20) for _ in range(2)]
    assert both[0] == both[1]
