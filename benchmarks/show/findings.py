"""The papers' findings beside ours: each published claim, what the results here say to it, the verdict (SPEC 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from statistics import mean
from typing import Any

import numpy as np

from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.lab.statistics import (
    FEWEST_RUNS,
    Array,
    Estimate,
    difference_of_means,
    estimate,
    sums,
    verdict,
)
from td_compiler.benchmarks.lab.table import COMPARED, Arm, Setting, settings
from td_compiler.benchmarks.show.tables import Section, Table

__all__ = ["findings", "judged", "least_accuracy", "paired", "right"]

_ON_PAR = 0.5  # points of accuracy
_GATE = 3.0  # points under what the paper's recipe reaches

# What bottom-up networks reach by the papers' recipes (SPEC 10.1), in per cent: data, network, figure.
_REACHED = (
    ("mnist", "zoo:lenet_fc", 98.5),
    ("fashion-mnist", "zoo:lenet_fc", 89.0),
    ("mnist", "zoo:nin_light", 99.2),
    ("fashion-mnist", "zoo:nin_light", 91.5),
    ("cifar10*", "zoo:resnet32", 85.0),
    ("meshes:2:fashion-mnist", "segmentation:unet-like", 75.0),
)


@dataclass(frozen=True)
class _Evidence:
    """What one group of results says to a claim.

    Attributes:
        setting, arm: where.
        found: the figure with its interval, or why there is none.
        verdict: see `td_compiler.benchmarks.lab.statistics.Verdict`.
        runs, images: how many it rests on.
    """

    setting: Setting
    arm: Arm
    found: str
    verdict: str
    runs: int = 0
    images: int = 0


@dataclass(frozen=True)
class _Claim:
    """A published finding.

    Attributes:
        text: the finding, with its published figures.
        source: where it stands.
        experiment: whose results speak to it.
        evidence: what they say, from a floor for networks that no paper has trained; empty where none do.
    """

    text: str
    source: str
    experiment: str
    evidence: Callable[[Sequence[Result], float | None], Iterable[_Evidence]]


def findings(results: Sequence[Result], floor: float | None = None) -> Section:
    """A table with a line for each published claim and group of results that speaks to it.

    Args:
        results: of all experiments.
        floor: what a bottom-up network must reach, in per cent, where no paper says what it reaches.
    """
    rows = [
        (claim.text, claim.source, *_row(each))
        for claim in _CLAIMS
        for each in claim.evidence([result for result in results if result.experiment == claim.experiment], floor)
    ]
    columns = ("published", "source", "here on", "found", "runs", "images", "recipe", "verdict", "command")
    table = Table("Claims and results", columns, tuple(rows))
    intro = (
        "What the papers found and what these results say to it. Supported or contradicted is what the whole 95 %"
        f" interval says, by bootstrap over at least {FEWEST_RUNS} runs, paired by seed, and the images; not tested is"
        f" what rests on fewer, or on a bottom-up network more than {_GATE:g} points under what it reaches elsewhere."
    )
    return Section("Published findings", intro, [table] if rows else [])


def _row(each: _Evidence) -> tuple[Any, ...]:
    command = next(iter(each.arm.runs.values())).command
    where = each.setting.title
    return (where, each.found, each.runs or None, each.images or None, each.arm.recipe, each.verdict, command)


def judged(
    setting: Setting,
    arm: Arm,
    seeds: Collection[int],
    reached: Sequence[float],
    floor: float | None,
    judge: Callable[[], tuple[str, str, int]],
    reference: str = "",
) -> _Evidence:
    """The evidence of one arm, unless the runs are too few or BU is too weak to speak of.

    Args:
        setting, arm: where.
        seeds: the paired runs.
        reached: what the bottom-up network reaches in its runs, from 0 to 1.
        floor: as in `findings`.
        judge: what is found, the verdict, the number of images.
        reference: the bottom-up network, if it is not the setting's.
    """
    own = 100 * mean(reached) if reached else math.nan
    least = least_accuracy(setting, floor, reference)
    if not reached:
        return _Evidence(setting, arm, "no BU network trained alike", "not tested")
    if least is not None and own < least:
        return _Evidence(setting, arm, f"BU reaches {own:.1f} %, not {least:.1f} %", "not tested", len(seeds))
    if len(seeds) < FEWEST_RUNS:
        return _Evidence(setting, arm, f"{len(seeds)} of at least {FEWEST_RUNS} paired runs", "not tested", len(seeds))
    found, outcome, images = judge()
    warning = "" if least is not None else f"; BU reaches {own:.1f} %, which nothing here can judge"
    return _Evidence(setting, arm, found + warning, outcome, len(seeds), images)


def least_accuracy(setting: Setting, floor: float | None = None, reference: str = "") -> float | None:
    """What a bottom-up network must reach, in per cent, for findings on it to count (SPEC 10.1).

    Args:
        setting: where it is trained.
        floor: where no paper says what it reaches; None: nothing is asked of it.
        reference: the bottom-up network, if it is not the setting's.
    """
    network, data = reference or str(setting.columns.get("network")), str(setting.columns["data"])
    known = [figure for where, name, figure in _REACHED if fnmatchcase(data, where) and network == name]
    augmented = setting.columns.get("augment", "none") != "none"
    return known[0] - _GATE if known and not augmented else floor


def paired(ours: Arm, theirs: Arm | None) -> list[int]:
    """The seeds that both have."""
    return [seed for seed in ours.runs if theirs is not None and seed in theirs.runs]


def _accuracy_claim(
    data: Sequence[str], source: str, ours: str, theirs: str, **bounds: float
) -> Callable[[Sequence[Result], float | None], Iterator[_Evidence]]:
    """Evidence from two networks' accuracies, on these data sets, for this source network or any; see `verdict`."""

    def evidence(results: Sequence[Result], floor: float | None) -> Iterator[_Evidence]:
        for setting in settings(results):
            network = str(setting.columns["network"]).removeprefix("zoo:")
            if setting.columns["data"] not in data or source not in {network, "*"}:
                continue
            for arm in setting.arms:
                other, bottom_up = setting.arm(theirs, beside=arm), setting.arm("BU", beside=arm)
                if arm.label == ours and other is not None:
                    reached = bottom_up.values("accuracy") if bottom_up else []
                    seeds = paired(arm, other)
                    yield judged(setting, arm, seeds, reached, floor, partial(judge, arm, other, seeds))

    def judge(arm: Arm, other: Arm, seeds: Sequence[int]) -> tuple[str, str, int]:
        found = difference_of_means(*(right(each, seeds) for each in (arm, other)))
        return found.text("points"), verdict(found, **bounds), found.images

    return evidence


def right(arm: Arm, seeds: Sequence[int]) -> Any:
    """Whether each image is right in each run, (R, N)."""
    return np.stack([unpacked(arm.runs[seed].figures["right"]) for seed in seeds])


def _robustness(
    kinds: Sequence[str], outcome: Callable[[Mapping[str, Any]], str]
) -> Callable[[Sequence[Result], float | None], Iterator[_Evidence]]:
    """Evidence from TD's perturbations under attacks of these kinds, over BU's."""

    def evidence(results: Sequence[Result], floor: float | None) -> Iterator[_Evidence]:
        from td_compiler.benchmarks.attacks.attacks import ATTACKS
        from td_compiler.benchmarks.experiments.robustness.groups import attack_settings, compared

        for setting in attack_settings(results):
            named = ({arm.columns["attack"] for arm in setting.arms if arm.label == who} for who in ("BU", "mirror"))
            both = set.intersection(*named)  # others are not finished
            chosen = [arm for arm in setting.arms if arm.columns["attack"] in both]
            chosen = [arm for arm in chosen if ATTACKS[str(arm.columns["attack"])].kind in kinds]
            mine = Setting(setting.columns, chosen, setting.title)
            arm = mine.arm("mirror")
            bottom_up = mine.arm("BU", beside=arm) if arm else None
            if arm is None or bottom_up is None:
                continue

            def judge(mine: Setting = mine, arm: Arm = arm) -> tuple[str, str, int]:
                found = compared(mine, arm)
                words = [f"{name} {each.word} ({each.ratio.text()})" for name, each in found.items()]
                return "; ".join(words), outcome(found), max((each.ratio.images for each in found.values()), default=0)

            reached = bottom_up.values(lambda figures: float(unpacked(figures["right"]).mean()))
            yield judged(mine, arm, paired(arm, bottom_up), reached, floor, judge)

    return evidence


def _mostly_larger(found: Mapping[str, Any]) -> str:
    words = [each.word for each in found.values()]
    if 2 * words.count("larger") > len(words):
        return "supported"
    return "contradicted" if words and 2 * words.count("smaller") >= len(words) else "undecided"


def _never_larger(found: Mapping[str, Any]) -> str:
    if found and all(each.ratio.high <= 1 for each in found.values()):
        return "supported"
    return "contradicted" if found and all(each.word == "larger" for each in found.values()) else "undecided"


def _localisation(
    measure: str, published: Mapping[tuple[str, str], float | None], sign: int
) -> Callable[[Sequence[Result], float | None], Iterator[_Evidence]]:
    """Evidence from TD's measure less BU's, in the authors' form; by (data, network) the figure as published."""

    def evidence(results: Sequence[Result], floor: float | None) -> Iterator[_Evidence]:
        for setting in settings(results, COMPARED | {"bottom_up.options"}):
            place = (str(setting.columns["data"]), str(setting.columns["network"]).removeprefix("zoo:"))
            for arm in setting.arms:
                if arm.label == "mirror" and place in published:
                    reached = arm.values(lambda figures: float(unpacked(figures["right"]["bottom_up"]).mean()))
                    judge = partial(_localised, arm, measure, published[place], sign)
                    yield judged(setting, arm, list(arm.runs), reached, floor, judge)

    return evidence


def _localised(arm: Arm, measure: str, near: float | None, sign: int) -> tuple[str, str, int]:
    from td_compiler.benchmarks.experiments.heatmaps.tables import BASELINES, FORMS, gain

    found = gain(arm, measure, FORMS[1])
    bounds = {"above": 0.0} if sign > 0 else {"below": 0.0}
    outcome, text = verdict(found, **bounds, near=near), found.text("points")
    if measure == "iou":
        unbeaten = [name for name in BASELINES if gain(arm, measure, FORMS[1], name).low <= 0]
        if unbeaten:
            text += f"; TD does not beat: {'; '.join(unbeaten)}"
            outcome = "undecided" if outcome == "supported" else outcome
    return text, outcome, found.images


def _segmentation(results: Sequence[Result], floor: float | None) -> Iterator[_Evidence]:
    """U-Net above FCN above TD."""
    from td_compiler.benchmarks.experiments.segmentation.section import segmentation_settings

    for setting in segmentation_settings(results):
        arms = {str(arm.columns["network"]).partition(":")[2]: arm for arm in setting.arms}
        order = [arms.get(name) for name in ("unet-like", "fcn-light", "td")]
        if any(arm is None for arm in order):
            continue
        unet, fcn, td = order
        assert unet and fcn and td
        seeds = [seed for seed in paired(unet, fcn) if seed in td.runs]
        reached = unet.values("mean_iou")

        def judge(pairs: Any = ((unet, fcn), (fcn, td)), seeds: Sequence[int] = tuple(seeds)) -> tuple[str, str, int]:
            found = [_mean_iou_gain(one, other, seeds) for one, other in pairs]
            verdicts = {verdict(each, above=0.0) for each in found}
            outcome = "contradicted" if "contradicted" in verdicts else "undecided"
            texts = ", ".join(f"{name} {each.text('points')}" for name, each in zip(_STEPS, found, strict=True))
            return texts, "supported" if verdicts == {"supported"} else outcome, found[0].images

        yield judged(setting, td, seeds, reached, floor, judge, reference="segmentation:unet-like")


_STEPS = ("U-Net over FCN", "FCN over TD")


def _mean_iou_gain(one: Arm, other: Arm, seeds: Sequence[int]) -> Estimate:
    """By how many points of mean IoU a network is above another."""
    values = np.stack(
        [np.stack([unpacked(arm.runs[seed].figures["overlaps"]) for seed in seeds]) for arm in (one, other)], 2
    )  # (R, N, 2, K, 2)

    def difference(of_runs: Array, of_images: Array) -> Array:
        total = sums(values, of_runs, of_images)
        with np.errstate(invalid="ignore"):
            means = np.nanmean(total[..., 0] / total[..., 1], axis=2)  # a class without a pixel counts for neither
        gained: Array = 100 * (means[:, 0] - means[:, 1])
        return gained

    return estimate(difference, values.shape[0], values.shape[1])


_SMALL = ("mnist", "fashion-mnist")
_CIFAR = ("cifar10", "cifar10-jpeg")
_NOISE = ("correlated noise", "uncorrelated noise", "blur")
_IOU = {
    ("mnist", "nin_light"): 2.6,
    ("fashion-mnist", "nin_light"): 3.9,
    ("mnist", "lenet_fc"): 0.38,
    ("fashion-mnist", "lenet_fc"): 0.64,
}
_ANY: dict[tuple[str, str], float | None] = {(data, "nin_light"): None for data in _SMALL}

_CLAIMS = (
    _Claim(
        f"TD is on par with BU or above (at most {_ON_PAR} points under it)",
        "paper, figure 4",
        "accuracy",
        _accuracy_claim(_SMALL, "*", "mirror", "BU", above=-_ON_PAR),
    ),
    _Claim(
        "ResNet32: TD is under BU, by 5.7 points",
        "thesis, Exp. 1",
        "accuracy",
        _accuracy_claim(_CIFAR, "resnet32", "mirror", "BU", below=0.0, near=-5.7),
    ),
    _Claim(
        "ResNet32: 32 filters at the end make TD better, by about 4 points",
        "thesis, Exp. 1",
        "accuracy",
        _accuracy_claim(_CIFAR, "resnet32", "mirror, head_width=32", "mirror", above=0.0, near=4.0),
    ),
    _Claim(
        "ResNet32: TD reversed is above BU",
        "thesis, Exp. 1",
        "accuracy",
        _accuracy_claim(_CIFAR, "resnet32", "reversed", "BU", above=0.0),
    ),
    _Claim(
        "ResNet18-light: TD is under BU, by about 4 points",
        "supplement, section 2",
        "accuracy",
        _accuracy_claim(("imagenette",), "resnet18_light", "mirror, stem=leading", "BU", below=0.0, near=-4.0),
    ),
    _Claim(
        "Noise and blur: TD needs larger perturbations for most attacks (L2 distance)",
        "paper, figure 6",
        "robustness",
        _robustness(_NOISE, _mostly_larger),
    ),
    _Claim(
        "Rotations and shifts: TD is not more robust",
        "paper, figure 6",
        "robustness",
        _robustness(("spatial",), _never_larger),
    ),
    _Claim(
        "TD localises better, by +0.38 to +3.9 points of IoU",
        "thesis, figure 10",
        "localise",
        _localisation("iou", _IOU, 1),
    ),
    _Claim("TD's precision is higher", "paper, figure 9", "localise", _localisation("precision", _ANY, 1)),
    _Claim(
        "TD's recall is slightly lower on Fashion-MNIST",
        "paper, figure 9",
        "localise",
        _localisation("recall", {("fashion-mnist", "nin_light"): None}, -1),
    ),
    _Claim("Mean IoU: U-Net 81 %, FCN 76 %, TD 75 %, in this order", "thesis, figure 7", "segmentation", _segmentation),
)
