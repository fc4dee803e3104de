"""The properties that `compare` looks at: what two networks' figures say of each, and the word for it (SPEC 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from td_compiler.benchmarks.experiments.compare.jobs import ATTACKS
from td_compiler.benchmarks.experiments.compare.measures import BINS, OVERLAPS, calibration_gaps
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.lab.statistics import Array, Estimate, estimate, holm, median_of, sums

__all__ = [
    *("ACCURACY", "PROPERTIES", "Finding", "Pair", "Property"),
    *("average_precision", "box_accuracy", "judged", "with_objects"),
]


@dataclass(frozen=True)
class Pair:
    """One measure of a top-down network and of its bottom-up network, by seed.

    Attributes:
        ours, theirs: figures of the runs, in the same order of seeds.
    """

    ours: Sequence[Mapping[str, Any]]
    theirs: Sequence[Mapping[str, Any]]

    def arrays(self, name: str) -> tuple[Array, Array]:
        """A figure of the top-down and of the bottom-up network, (R, N, ...)."""
        both = (np.stack([unpacked(run[name]) for run in runs]) for runs in (self.ours, self.theirs))
        ours, theirs = (each.astype(float) for each in both)
        return ours, theirs


@dataclass(frozen=True)
class Finding:
    """What two networks' figures say of a property.

    Attributes:
        bu, td: each network's figure, in words.
        difference: TD's less BU's, or the logarithm of their ratio; a p for Holm in it.
        text: the same in words.
    """

    bu: str
    td: str
    difference: Estimate
    text: str


@dataclass(frozen=True)
class Property:
    """A row of the table.

    Attributes:
        name: the property.
        measure: whose results it is of.
        better: 1 where more is better, -1 where less is.
        find: the figures, from the pair; None where they say nothing.
        family: rows of a family are tested together (Holm).
        needs: a figure without which the property was not measured.
    """

    name: str
    measure: str
    better: int
    find: Callable[[Pair], Finding | None]
    family: str = ""
    needs: str = ""


def _means(values: tuple[Array, Array], unit: str, scale: float = 100, digits: int = 1) -> Finding:
    """Of values (R, N) of both networks, their means."""
    ours, theirs = (scale * each for each in values)
    runs, images = ours.shape
    found = estimate(lambda r, i: sums(ours - theirs, r, i) / (r.sum(1) * i.sum(1)), runs, images)
    bu, td = (f"{each.mean():.{digits}f}" for each in (theirs, ours))
    return Finding(bu, td, found, found.text(unit, digits))


def _mean_of(name: str, pair: Pair, unit: str = "points", scale: float = 100, digits: int = 1) -> Finding:
    return _means(pair.arrays(name), unit, scale, digits)


def _calibration(pair: Pair) -> Finding:
    """Expected calibration error, the mean over runs."""
    import torch

    gaps = []
    for confidences, right in zip(pair.arrays("confidence"), pair.arrays("right"), strict=True):
        flat = calibration_gaps(torch.tensor(confidences).flatten(), torch.tensor(right).flatten())
        gaps.append(flat.view(*right.shape, BINS).numpy())

    def error(of: Array, of_runs: Array, of_images: Array) -> Array:
        by_run = np.stack([np.abs(of_images @ run).sum(1) for run in of], 1) / of_images.sum(1, keepdims=True)
        mean: Array = 100 * (of_runs * by_run).sum(1) / of_runs.sum(1)
        return mean

    return _compared(error, (gaps[0], gaps[1]))


_SEVERITIES = 5
_KINDS = ("noise", "blur", "weather", "digital")


def _corrupted(kind: str, pair: Pair) -> Finding:
    """Errors under the corruptions of a kind."""
    from td_compiler.benchmarks.attacks.corruptions import CORRUPTIONS

    chosen = [place for place, each in enumerate(CORRUPTIONS.values()) if each.kind == kind]
    ours, theirs = (each[..., chosen].mean(2) / _SEVERITIES for each in pair.arrays("wrong"))
    return _means((ours, theirs), "points")


def _relative(pair: Pair, less_clean: bool) -> Finding | None:
    """The mean over corruptions of TD's errors over BU's (Hendrycks and Dietterich 2019): mCE, or relative mCE.

    The relative one is of what corruptions add to the errors on clean images; it has no meaning where they add none.
    """
    ours, theirs = (each / _SEVERITIES for each in pair.arrays("wrong"))
    if less_clean:
        right = pair.arrays("right")
        ours, theirs = (each - (1 - clean[..., None]) for each, clean in zip((ours, theirs), right, strict=True))
    runs, images = ours.shape[:2]
    if (theirs.mean((0, 1)) <= 0.01).any():
        return None

    def ratio(of_runs: Array, of_images: Array) -> Array:
        below = np.maximum(sums(theirs, of_runs, of_images), 1e-9)
        over: Array = 100 * (sums(ours, of_runs, of_images) / below).mean(1) - 100
        return over

    found = estimate(ratio, runs, images)
    return Finding("100", f"{100 + found.value:.0f}", found, found.text("points", 0))


def _distance(norm: str, pair: Pair) -> Finding | None:
    """The median ratio of the distances that each image needs, of those that both networks classify rightly."""
    distances = pair.arrays(norm)
    counted = np.logical_and(*(each > 0 for each in pair.arrays("right")))
    if not counted.any(1).all():
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.log(distances[0]) - np.log(distances[1])
    found = median_of(np.nan_to_num(ratios, nan=0.0, posinf=np.inf, neginf=-np.inf), counted)  # both failed: a tie
    found = replace(found, images=round(counted.sum(1).mean()))
    bu, td = (_distance_in_words(float(np.median(each[counted]))) for each in reversed(distances))
    ratio = found.map(lambda value: float(np.exp(value)))
    return Finding(bu, td, found, f"x {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")


def _distance_in_words(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "none found"


def _boxes_found(pair: Pair) -> Finding:
    return _compared(box_accuracy, pair.arrays("boxes"))


def box_accuracy(overlaps: Array, of_runs: Array, of_images: Array) -> Array:
    """MaxBoxAccV2 in per cent (B,) of overlaps (R, N, LEVELS), at the level that is best over all runs and images."""
    shares = [sums(overlaps >= least, of_runs, of_images).max(1) for least in OVERLAPS]
    accuracy: Array = 100 * np.mean(shares, 0) / (of_runs.sum(1) * of_images.sum(1))
    return accuracy


def _pixels_found(pair: Pair) -> Finding:
    ours, theirs = (with_objects(runs, "pixels") for runs in (pair.ours, pair.theirs))
    return _compared(average_precision, (ours, theirs))


def with_objects(runs: Sequence[Mapping[str, Any]], name: str) -> Array:
    """Counts of pixels (R, N, LEVELS, 3): above a level the object's and all; the object's."""
    above, objects = (np.stack([unpacked(run[figure]) for run in runs]) for figure in (name, "object"))
    return np.concatenate([above, np.broadcast_to(objects[:, :, None, None], (*above.shape[:3], 1))], 3)


def average_precision(counts: Array, of_runs: Array, of_images: Array) -> Array:
    """PxAP in per cent (B,) of counts (R, N, LEVELS, 3), see `with_objects`: the area under precision and recall."""
    hits, marked, objects = np.moveaxis(sums(counts, of_runs, of_images)[:, ::-1], 2, 0)  # (B, LEVELS), highest first
    precision, recall = hits / np.maximum(marked, 1e-9), hits / np.maximum(objects, 1e-9)
    area: Array = 100 * (precision * np.diff(recall, axis=1, prepend=0)).sum(1)
    return area


def _compared(statistic: Callable[[Array, Array, Array], Array], values: tuple[Array, Array]) -> Finding:
    """Of a statistic that is no mean, from values (R, N, ...) and the weights of runs and images."""
    runs, images = values[0].shape[:2]
    found = estimate(lambda r, i: statistic(values[0], r, i) - statistic(values[1], r, i), runs, images)
    everything = np.ones((1, runs)), np.ones((1, images))
    bu, td = (f"{float(statistic(each, *everything)[0]):.1f}" for each in (values[1], values[0]))
    return Finding(bu, td, found, found.text("points", 1))


ACCURACY = Property("accuracy (%)", "answers", 1, partial(_mean_of, "right"))
_ANSWERS: tuple[Property, ...] = (
    ACCURACY,
    Property("calibration: expected error (%)", "answers", -1, _calibration),
    Property("calibration: log loss", "answers", -1, partial(_mean_of, "loss", unit="nats", scale=1, digits=3)),
    Property("same class under two shifts (%)", "consistency", 1, partial(_mean_of, "agreed")),
)
_CORRUPTIONS = (
    *(
        Property(f"errors under corruptions, {kind} (%)", "corruptions", -1, partial(_corrupted, kind), "corruptions")
        for kind in _KINDS
    ),
    Property("errors over BU's, mean of corruptions (mCE, %)", "corruptions", -1, partial(_relative, less_clean=False)),
    Property(
        "errors added to the clean ones, over BU's (relative mCE, %)",
        "corruptions",
        -1,
        partial(_relative, less_clean=True),
    ),
)


def _attack_rows() -> tuple[Property, ...]:
    norms = {name: "linf" if name in {"FGSM", "PGD"} else "l2" for name in ATTACKS}
    titles = {"l2": "L2", "linf": "largest change"}
    return tuple(
        Property(f"attack, {name}: {titles[norm]} needed", name, 1, partial(_distance, norm), "attacks")
        for name, norm in norms.items()
    )


PROPERTIES = (
    *_ANSWERS,
    *_CORRUPTIONS,
    *_attack_rows(),
    Property("accuracy under the worst attack (%)", "worst attack", 1, partial(_mean_of, "withstood")),
    Property("heat map: deletion (%)", "heat maps", -1, partial(_mean_of, "deletion")),
    Property("heat map: insertion (%)", "heat maps", 1, partial(_mean_of, "insertion")),
    Property("heat map: like that of random weights (%)", "heat maps", -1, partial(_mean_of, "random")),
    Property("heat map: maximum on the object (%)", "heat maps", 1, partial(_mean_of, "hit"), needs="hit"),
    Property("heat map: energy on the object (%)", "heat maps", 1, partial(_mean_of, "energy"), needs="energy"),
    Property("heat map: boxes found (MaxBoxAccV2, %)", "heat maps", 1, _boxes_found, needs="boxes"),
    Property("heat map: pixels found (PxAP, %)", "heat maps", 1, _pixels_found, needs="pixels"),
)


def judged(properties: Sequence[Property], found: Sequence[Finding | None]) -> list[str]:
    """`better`, `worse`, `undecided` or, where there is no finding, `not tested`, for each property."""
    ps = [each.difference.p if each else 1.0 for each in found]
    families = {each.family for each in properties if each.family}
    for family in families:
        places = [i for i, each in enumerate(properties) if each.family == family and found[i]]
        for place, p in zip(places, holm([ps[i] for i in places]), strict=True):
            ps[place] = p
    return [_word(row, each, p) for row, each, p in zip(properties, found, ps, strict=True)]


def _word(row: Property, found: Finding | None, p: float) -> str:
    if found is None:
        return "not tested"
    low, high = sorted(row.better * each for each in (found.difference.low, found.difference.high))
    if row.family and p >= 0.05:
        return "undecided"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"
