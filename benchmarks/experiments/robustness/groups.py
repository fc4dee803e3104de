"""Results of the robustness experiment, put together by what can be compared."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.data.datasets import title
from benchmarks.lab.journal import Result
from benchmarks.training.networks import ARRANGEMENTS, NetworkSpec

__all__ = ["AttackRun", "AttackRuns", "CorruptionRuns", "Setting", "attack_runs", "corruption_runs"]


@dataclass(frozen=True, order=True)
class Setting:
    """What results share that are compared: all but attack, arrangement and run."""

    data: str
    network: str
    trained_on: int | None
    images: int

    @property
    def title(self) -> str:
        """`LeNetFC`-like names are the zoo's: `lenet_fc on MNIST, 6,000 training images, 500 test images`."""
        trained_on = f"{self.trained_on:,}" if self.trained_on else "all"
        name = self.network.removeprefix("zoo:")
        return f"{name} on {title(self.data)}, {trained_on} training images, {self.images:,} test images"

    @property
    def stem(self) -> str:
        """The same for names of files."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.data} {self.network.removeprefix('zoo:')} {self.images}".lower())


@dataclass(frozen=True)
class AttackRun:
    """What one attack did to one trained network.

    Attributes:
        images: how many there were.
        right: how many of them are classified rightly without attack.
        l2, linf: the distances of the perturbations that succeeded, sorted.
        scales: how many images are right when only these scales of a top-down network see the perturbed ones.
    """

    images: int
    right: int
    l2: Sequence[float]
    linf: Sequence[float]
    scales: Mapping[str, int]

    @property
    def success(self) -> float:
        """The share of the images classified rightly that the attack fools, from 0 to 1."""
        return self.fooled_within(float("inf"))

    @property
    def median(self) -> float | None:
        """The L2 distance within which half of them are fooled; None where fewer are."""
        padded = [*self.l2, *[float("inf")] * (self.right - len(self.l2))]
        middle = statistics.median(padded) if padded else float("inf")
        return middle if middle < float("inf") else None

    def fooled_within(self, distance: float) -> float:
        """The share of the images classified rightly that are fooled by a perturbation of at most this L2 distance."""
        return sum(each <= distance for each in self.l2) / self.right if self.right else 0.0

    def accuracy_within(self, bound: float) -> float:
        """The accuracy, from 0 to 1, where perturbations may change every value by at most `bound`."""
        return (self.right - sum(each <= bound for each in self.linf)) / self.images


AttackRuns = Mapping[str, Mapping[str, Sequence[AttackRun]]]
"""Attack -> network -> one for each run."""

CorruptionRuns = Mapping[str, Sequence[Mapping[str, Any]]]
"""Network -> the figures of each run."""


def attack_runs(results: Sequence[Result]) -> Mapping[Setting, AttackRuns]:
    """The results of attacks; attacks in the order of their table, networks in that of the papers' figures."""
    from benchmarks.attacks.attacks import ATTACKS

    found: dict[Setting, dict[str, dict[str, list[AttackRun]]]] = {}
    mine = [result for result in _ordered(results) if "attack" in result.job]
    for result in sorted(mine, key=lambda result: list(ATTACKS).index(result.job["attack"])):
        attacks = found.setdefault(_setting(result), {})
        networks = attacks.setdefault(result.job["attack"], {})
        networks.setdefault(_label(result), []).append(AttackRun(**{"scales": {}, **result.figures}))
    return dict(sorted(found.items(), key=_by_size))


def corruption_runs(results: Sequence[Result]) -> Mapping[Setting, CorruptionRuns]:
    """The results of corruptions; networks in the order of the papers' figures."""
    found: dict[Setting, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in _ordered(results):
        if "attack" not in result.job:
            found[_setting(result)][_label(result)].append(result.figures)
    return dict(sorted(found.items(), key=_by_size))


def _by_size(item: tuple[Setting, Any]) -> tuple[str, str, int, int]:
    setting = item[0]
    return (setting.data, setting.network, setting.trained_on or 0, setting.images)


def _ordered(results: Sequence[Result]) -> list[Result]:
    """By arrangement and run. Of several results of the same network, attack and run the last one counts."""
    latest = {}
    for result in results:
        place = ARRANGEMENTS.index(_network(result).arrangement)
        order = (place, _label(result), result.job["training"]["run"])
        latest[order, _setting(result), result.job.get("attack")] = order, result
    return [result for _, result in sorted(latest.values(), key=lambda each: each[0])]


def _setting(result: Result) -> Setting:
    training = result.job["training"]
    return Setting(training["data"], training["network"]["name"], training["train_images"], result.figures["images"])


def _network(result: Result) -> NetworkSpec:
    network = result.job["training"]["network"]
    return NetworkSpec(network["name"], network["arrangement"], tuple(map(tuple, network["options"])))


def _label(result: Result) -> str:
    return _network(result).label
