"""The papers' findings beside ours: each published claim, what the results here say to it, and whether it holds.

A claim holds at the sizes of the results at hand or it does not; a small size is no argument against a paper, and the
table says with every line what the size was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.data.datasets import title
from benchmarks.lab.journal import Result
from benchmarks.show.tables import Section, Table
from benchmarks.training.networks import NetworkSpec
from benchmarks.training.recipes import images_in_words, size_in_words

__all__ = ["findings"]

_ON_PAR = 0.5  # points of accuracy


@dataclass(frozen=True)
class _Evidence:
    """What one group of results says: where, in words and numbers, and whether the claim holds there."""

    where: str
    found: str
    holds: bool


@dataclass(frozen=True)
class _Claim:
    """A published finding.

    Attributes:
        text: the finding, with its published figures.
        source: where it stands.
        experiment: whose results speak to it.
        evidence: what they say; empty where none do.
    """

    text: str
    source: str
    experiment: str
    evidence: Callable[[Sequence[Result]], Iterable[_Evidence]]


def findings(results: Sequence[Result]) -> Section:
    """A table with a line for each published claim and group of results that speaks to it."""
    rows = [
        (claim.text, claim.source, each.where, each.found, "yes" if each.holds else "no")
        for claim in _CLAIMS
        for each in claim.evidence([result for result in results if result.experiment == claim.experiment])
    ]
    table = Table("Claims and results", ("published", "source", "here on", "found", "holds"), tuple(rows))
    intro = "What the papers found and what these results say to it, at the size that each line names."
    return Section("Published findings", intro, [table] if rows else [])


Setting = tuple[str, str, str]
"""Data set, source network, size of the training: what is compared with each other."""


def _by_setting(results: Iterable[Result], training: str = "training") -> Mapping[Setting, Mapping[str, list[Result]]]:
    """setting -> network's label -> its runs."""
    groups: dict[Setting, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        fields = result.job[training]
        network = fields["network"]
        label = NetworkSpec(network["name"], network["arrangement"], tuple(map(tuple, network["options"]))).label
        groups[fields["data"], network["name"].removeprefix("zoo:"), images_in_words(fields)][label].append(result)
    return groups


def _place(setting: Setting) -> str:
    data, network, size = setting
    return f"{network} on {title(data)}, {size}"


def _accuracy(runs: Sequence[Result]) -> float:
    return mean(100 * run.figures["accuracy"] for run in runs)


def _differences(results: Sequence[Result], ours: str, theirs: str) -> Iterator[tuple[Setting, float]]:
    """In points of accuracy, for every setting that has both networks."""
    for setting, networks in _by_setting(results).items():
        if ours in networks and theirs in networks:
            yield setting, _accuracy(networks[ours]) - _accuracy(networks[theirs])


def _accuracy_claim(
    data: Sequence[str], source: str, ours: str, theirs: str, holds: Callable[[float], bool]
) -> Callable[[Sequence[Result]], Iterator[_Evidence]]:
    """Evidence from the difference of two networks' accuracies, on these data sets, for this source network or any."""

    def evidence(results: Sequence[Result]) -> Iterator[_Evidence]:
        for setting, points in _differences(results, ours, theirs):
            if setting[0] in data and source in {setting[1], "*"}:
                yield _Evidence(_place(setting), f"{points:+.2f} points", holds(points))

    return evidence


def _robustness(kinds: Sequence[str], holds: Callable[[int, int], bool]) -> Callable[..., Iterator[_Evidence]]:
    """Evidence from how many attacks of these kinds need larger perturbations for TD than for BU."""

    def evidence(results: Sequence[Result]) -> Iterator[_Evidence]:
        from benchmarks.attacks.attacks import ATTACKS
        from benchmarks.experiments.robustness.groups import attack_runs

        for setting, attacks in attack_runs(results).items():
            compared = {
                name: _median(networks["mirror"]) > _median(networks["BU"])
                for name, networks in attacks.items()
                if ATTACKS[name].kind in kinds and {"BU", "mirror"} <= networks.keys()
            }
            if compared:
                better = [name for name, more in compared.items() if more]
                found = f"larger for TD under {len(better)} of {len(compared)}" + (
                    f": {', '.join(better)}" * bool(better)
                )
                yield _Evidence(setting.title, found, holds(len(better), len(compared)))

    return evidence


def _median(runs: Sequence[Any]) -> float:
    """The distance within which half of the images are fooled; infinite where fewer are."""
    return mean(float("inf") if run.median is None else run.median for run in runs)


def _localisation(measure: str, data: Sequence[str], sign: int) -> Callable[[Sequence[Result]], Iterator[_Evidence]]:
    """Evidence from TD's measure less BU's, which should have this sign."""

    def evidence(results: Sequence[Result]) -> Iterator[_Evidence]:
        for setting, networks in _by_setting(results, "top_down").items():
            for run in [networks["mirror"]] if "mirror" in networks and setting[0] in data else []:
                points = mean(
                    100 * (r.figures["top_down"]["last"][measure] - r.figures["bottom_up"]["last"][measure])
                    for r in run
                )
                yield _Evidence(_place(setting), f"{points:+.2f} points", sign * points > 0)

    return evidence


def _segmentation(results: Sequence[Result]) -> Iterator[_Evidence]:
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        training = result.job["training"]
        network = training["network"]["name"].partition(":")[2]
        groups[f"{title(training['data'])}, {size_in_words(training)}"][network].append(result.figures["mean_iou"])
    order = ("unet-like", "fcn-light", "td")
    for where, networks in groups.items():
        if all(name in networks for name in order):
            scores = [100 * mean(networks[name]) for name in order]
            yield _Evidence(
                where, ", ".join(f"{score:.1f} %" for score in scores), scores == sorted(scores, reverse=True)
            )


_SMALL = ("mnist", "fashion-mnist")
_CIFAR = ("cifar10", "cifar10-jpeg")
_NOISE = ("correlated noise", "uncorrelated noise", "blur")

_CLAIMS = (
    _Claim(
        f"TD is on par with BU or above (here: at most {_ON_PAR} points under it)",
        "paper, figure 4",
        "accuracy",
        _accuracy_claim(_SMALL, "*", "mirror", "BU", lambda points: points >= -_ON_PAR),
    ),
    _Claim(
        "ResNet32: TD is under BU, by 5.7 points",
        "thesis, Exp. 1",
        "accuracy",
        _accuracy_claim(_CIFAR, "resnet32", "mirror", "BU", lambda points: points < 0),
    ),
    _Claim(
        "ResNet32: 32 filters at the end make TD better, by about 4 points",
        "thesis, Exp. 1",
        "accuracy",
        _accuracy_claim(_CIFAR, "resnet32", "mirror, head_width=32", "mirror", lambda points: points > 0),
    ),
    _Claim(
        "ResNet32: TD reversed is above BU",
        "thesis, Exp. 1",
        "accuracy",
        _accuracy_claim(_CIFAR, "resnet32", "reversed", "BU", lambda points: points > 0),
    ),
    _Claim(
        "Noise and blur: TD needs larger perturbations for most attacks (median L2 distance)",
        "paper, figure 6",
        "robustness",
        _robustness(_NOISE, lambda better, all_: 2 * better > all_),
    ),
    _Claim(
        "Rotations and shifts: TD is not more robust",
        "paper, figure 6",
        "robustness",
        _robustness(("spatial",), lambda better, all_: better == 0),
    ),
    _Claim(
        "TD localises better: IoU +0.4 to +3.9 points", "thesis, figure 10", "localise", _localisation("iou", _SMALL, 1)
    ),
    _Claim("TD's precision is higher", "paper, figure 9", "localise", _localisation("precision", _SMALL, 1)),
    _Claim(
        "TD's recall is slightly lower on Fashion-MNIST",
        "paper, figure 9",
        "localise",
        _localisation("recall", ("fashion-mnist",), -1),
    ),
    _Claim("Mean IoU: U-Net 81 %, FCN 76 %, TD 75 %, in this order", "thesis, figure 7", "segmentation", _segmentation),
)
