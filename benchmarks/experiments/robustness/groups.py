"""What attacks did to networks, run by run and image by image, and how two networks compare under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.lab.statistics import FEWEST_RUNS, Estimate, difference_of_means, holm, mcnemar, median_of
from td_compiler.benchmarks.lab.table import COMPARED, Arm, Setting, settings

__all__ = [
    *("AttackRun", "AttackRuns", "Comparison"),
    *("attack_settings", "attacked", "compared", "corrupted", "corruption_settings"),
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AttackRun:
    """What one attack did to one trained network.

    Attributes:
        right: (N,), whether each image is classified rightly without attack.
        l2, linf: (N,), the distances of the perturbations that were found; infinite where none was.
        scales: how many images are right when only these scales of a top-down network see the perturbed ones.
    """

    right: NDArray[np.bool_]
    l2: Array
    linf: Array
    scales: Mapping[str, int]

    @staticmethod
    def of(figures: Mapping[str, Any]) -> AttackRun:
        """From a result's figures."""
        l2, linf = (np.array([np.inf if each is None else each for each in figures[norm]]) for norm in ("l2", "linf"))
        return AttackRun(unpacked(figures["right"]).astype(bool), l2, linf, figures.get("scales", {}))

    @property
    def images(self) -> int:
        """How many there were."""
        return len(self.right)

    @property
    def success(self) -> float:
        """The share of the images classified rightly that the attack fools, from 0 to 1."""
        return float(np.isfinite(self.l2[self.right]).mean()) if self.right.any() else 0.0

    @property
    def median(self) -> float | None:
        """The L2 distance within which half of them are fooled; None where fewer are."""
        middle = float(np.median(self.l2[self.right])) if self.right.any() else np.inf
        return middle if np.isfinite(middle) else None

    def lost_within(self, distance: float) -> float:
        """The accuracy lost to perturbations of at most this L2 distance: a share of all images, from 0 to 1."""
        return float((self.right & (self.l2 <= distance)).mean())

    def accuracy_within(self, bound: float) -> float:
        """The accuracy, from 0 to 1, where perturbations may change every value by at most `bound`."""
        return float((self.right & (self.linf > bound)).mean())


AttackRuns = Mapping[str, Mapping[str, Sequence[AttackRun]]]
"""Attack -> network -> one for each run."""


def attack_settings(results: Sequence[Result]) -> list[Setting]:
    """What can be compared of the results of attacks, all attacks of a size together."""
    return settings((result for result in results if "attack" in result.job), COMPARED | {"attack"})


def corruption_settings(results: Sequence[Result]) -> list[Setting]:
    """The same of corruptions."""
    return settings(result for result in results if "attack" not in result.job)


def attacked(setting: Setting) -> AttackRuns:
    """The runs of every attack, attacks in the order of their table."""
    from td_compiler.benchmarks.attacks.attacks import ATTACKS

    found = sorted(setting.by("attack").items(), key=lambda item: list(ATTACKS).index(item[0]))
    return {
        attack: {setting.name(arm): [AttackRun.of(run.figures) for run in arm.runs.values()] for arm in each.arms}
        for attack, each in found
    }


@dataclass(frozen=True)
class Comparison:
    """A network beside BU under one attack.

    Attributes:
        ratio: the median, over images that both classify rightly, of its L2 distance over BU's.
        p: that the ratio is not 1, adjusted by Holm for all attacks of the setting.
        mcnemar: the p of the difference in success on those images, that of the run where it is largest.
    """

    ratio: Estimate
    p: float
    mcnemar: float

    @property
    def word(self) -> str:
        """Whether it needs `larger` or `smaller` perturbations, or `undecided`."""
        if self.p >= 0.05:
            return "undecided"
        return "larger" if self.ratio.value > 1 else "smaller"


def beside_bottom_up(setting: Setting, arm: Arm) -> tuple[list[Result], list[Result]]:
    """The runs of a top-down network and of the BU network trained alike, by seed; none where they are too few."""
    theirs = setting.arm("BU", beside=arm)
    seeds = [seed for seed in arm.runs if theirs and seed in theirs.runs]
    if theirs is None or len(seeds) < FEWEST_RUNS:
        return [], []
    return [arm.runs[seed] for seed in seeds], [theirs.runs[seed] for seed in seeds]


def compared(setting: Setting, arm: Arm) -> dict[str, Comparison]:
    """A network beside the BU network trained alike, under every attack that both have enough runs of."""
    found: dict[str, tuple[Estimate, float]] = {}
    for attack, each in setting.by("attack").items():
        mine = each.arm(arm.label, beside=arm)
        pair = beside_bottom_up(each, mine) if mine else ([], [])
        runs = [(AttackRun.of(ours.figures), AttackRun.of(theirs.figures)) for ours, theirs in zip(*pair, strict=True)]
        if runs:
            found[attack] = _log_ratio(runs), max(_mcnemar(*each) for each in runs)
    adjusted = holm([ratio.p for ratio, _ in found.values()])
    return {
        attack: Comparison(ratio.map(_exp), p, successes)
        for (attack, (ratio, successes)), p in zip(found.items(), adjusted, strict=True)
    }


def corrupted(setting: Setting, arm: Arm) -> dict[str, tuple[Estimate, float]]:
    """By how many points its error is above BU's under each corruption, with p adjusted by Holm, if runs are enough."""
    pair = beside_bottom_up(setting, arm)
    if not pair[0]:
        return {}
    ours, theirs = (np.stack([unpacked(run.figures["wrong"]) for run in runs]) / 5 for runs in pair)
    found = [difference_of_means(ours[..., place], theirs[..., place]) for place in range(ours.shape[2])]
    adjusted = holm([each.p for each in found])
    return dict(zip(pair[0][0].figures["errors"], zip(found, adjusted, strict=True), strict=True))


def _log_ratio(pairs: Sequence[tuple[AttackRun, AttackRun]]) -> Estimate:
    counted = np.stack([ours.right & theirs.right for ours, theirs in pairs])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.stack([np.log(ours.l2) - np.log(theirs.l2) for ours, theirs in pairs])
    return median_of(np.nan_to_num(ratios, nan=0.0, posinf=np.inf, neginf=-np.inf), counted)  # both failed: a tie


def _mcnemar(ours: AttackRun, theirs: AttackRun) -> float:
    both = ours.right & theirs.right
    return mcnemar(np.isfinite(ours.l2[both]), np.isfinite(theirs.l2[both]))


def _exp(value: float) -> float:
    return float(np.exp(value))
