"""What `compare` says: one table for each top-down network, property by property better, worse or undecided (SPEC 10).

Differences are between networks paired by seed, with 95 % intervals by bootstrap over runs and images together. The
word is the whole interval's; of several attacks, and of several corruptions, only what is left of it after Holm's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median
from typing import Any

import numpy as np

from td_compiler.benchmarks.experiments.compare.jobs import ATTACKS, MEASURES
from td_compiler.benchmarks.experiments.compare.measures import BINS, OVERLAPS, calibration_gaps
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.lab.statistics import FEWEST_RUNS, Array, Estimate, estimate, holm, median_of, sums
from td_compiler.benchmarks.lab.table import COMPARED, Arm, Setting, settings
from td_compiler.benchmarks.show.findings import least_accuracy
from td_compiler.benchmarks.show.tables import Cell, Section, Table
from td_compiler.report.tables import short_count

__all__ = ["Finding", "Property", "judged", "section", "summary", "table"]


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
    ours, theirs = (_with_objects(runs, "pixels") for runs in (pair.ours, pair.theirs))
    return _compared(average_precision, (ours, theirs))


def _with_objects(runs: Sequence[Mapping[str, Any]], name: str) -> Array:
    """Counts of pixels (R, N, LEVELS, 3): above a level the object's and all; the object's."""
    above, objects = (np.stack([unpacked(run[figure]) for run in runs]) for figure in (name, "object"))
    return np.concatenate([above, np.broadcast_to(objects[:, :, None, None], (*above.shape[:3], 1))], 3)


def average_precision(counts: Array, of_runs: Array, of_images: Array) -> Array:
    """PxAP in per cent (B,) of counts (R, N, LEVELS, 3), see `_with_objects`: the area under precision and recall."""
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


_ACCURACY = "accuracy (%)"
_ANSWERS: tuple[Property, ...] = (
    Property(_ACCURACY, "answers", 1, partial(_mean_of, "right")),
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


def section(results: Sequence[Result], floor: float | None = None) -> Section:
    """A table for each top-down network of each source, data set and size.

    Args:
        results: of `compare`.
        floor: what a bottom-up network must reach, in per cent, where no paper says what it reaches.
    """
    found = settings(results, COMPARED | {"measure"})
    return Section(
        "Top-down beside bottom-up",
        "Whether the top-down network (TD) of a network is better than the network itself (BU), and at what. Both are"
        " trained alike, from the same seeds, on the same images in the same order.",
        [table(setting, arm, floor) for setting in found for arm in _top_down(setting)],
    )


def _top_down(setting: Setting) -> list[Arm]:
    """The top-down networks, each once: its arm of the measure of answers."""
    answers = setting.by("measure").get("answers")
    return [arm for arm in answers.arms if arm.label != "BU"] if answers else []


def table(setting: Setting, arm: Arm, floor: float | None = None) -> Table:
    """One top-down network beside its bottom-up network."""
    pairs = {name: _pair(each, arm) for name, each in setting.by("measure").items()}
    gate = _gate(setting, arm, floor)
    rows = [row for row in PROPERTIES if _has(row, pairs.get(row.measure))]
    enough = {row.measure: len(pairs[row.measure].ours) >= FEWEST_RUNS for row in rows}
    found = [row.find(pairs[row.measure]) if enough[row.measure] else None for row in rows]
    words = judged(rows, found)
    tested = [not gate.closed and (row.name == _ACCURACY or not gate.only_accuracy) for row in rows]
    words = [word if each else "not tested" for word, each in zip(words, tested, strict=True)]
    lines = [_line(row, each, word) for row, each, word in zip(rows, found, words, strict=True)]
    lines += _longer(setting, arm, gate.closed)
    lines += _price(setting, arm)
    return Table(
        f"{setting.name(arm)} beside BU: {setting.title}",
        ("property", "good is", "BU", "TD", "TD - BU, or over it [95 %]", "TD is", "runs", "images"),
        tuple(lines),
        _note(setting, arm, gate, pairs),
    )


def summary(found: Table) -> str:
    """A table in a sentence or two: at what the top-down network is better, at what worse, and the price."""
    name = found.title.partition(" beside BU")[0]
    named = {word: [str(row[0]) for row in found.rows if row[5] == word] for word in ("better", "worse")}
    open_ones = [sum(row[5] == word for row in found.rows) for word in ("undecided", "not tested")]
    said = [f"{word} at {'; '.join(names)}" if names else f"{word} at nothing" for word, names in named.items()]
    paid = {str(row[0]).removeprefix(_PRICE): str(row[4]).partition(" (")[0] for row in found.rows if row[5] is None}
    prices = ", ".join(f"{title} {times}" for title, times in paid.items())
    counts = f"{open_ones[0]} undecided, {open_ones[1]} not tested"
    return f"{name} is {', '.join(said)}; {counts}." + (f" The price: {prices}." if prices else "")


def _pair(of_measure: Setting, arm: Arm) -> Pair:
    """The runs that both networks, trained alike, have."""
    mine = of_measure.arm(arm.label, beside=arm)
    other = of_measure.arm("BU", beside=arm)
    seeds = [seed for seed in mine.runs if seed in other.runs] if mine and other else []
    if mine is None or other is None:
        return Pair((), ())
    return Pair([mine.runs[s].figures for s in seeds], [other.runs[s].figures for s in seeds])


def _has(row: Property, pair: Pair | None) -> bool:
    """Whether a property was measured; the object's, only where the object is known."""
    if pair is None or not pair.ours:
        return False
    return not row.needs or row.needs in pair.ours[0]


def _line(row: Property, found: Finding | None, word: str) -> tuple[Cell, ...]:
    good = "more" if row.better > 0 else "less"
    if found is None:
        return (row.name, good, None, None, None, word, None, None)
    return (row.name, good, found.bu, found.td, found.text, word, found.difference.runs, found.difference.images)


@dataclass(frozen=True)
class _Gate:
    """Whether the networks were trained well enough to speak of.

    Attributes:
        reached: the bottom-up network's accuracy in per cent.
        top_down: the top-down network's.
        least: what the bottom-up network must reach; None where nothing says.
        commonest: the share of the commonest class in per cent: what a network reaches that always names it.
    """

    reached: float
    top_down: float
    least: float | None
    commonest: float

    @property
    def closed(self) -> bool:
        """Whether nothing is tested."""
        return self.least is not None and self.reached < self.least

    @property
    def learnt(self) -> float:
        """What a network reaches that has learnt anything: a tenth of the way from the commonest class to all images.

        What does not has one answer for most images, which no shift, noise or attack changes.
        """
        return self.commonest + 0.1 * (100 - self.commonest)

    @property
    def only_accuracy(self) -> bool:
        """Whether one of the networks has not learnt enough for anything but its accuracy to be compared."""
        return min(self.reached, self.top_down) < self.learnt


def _gate(setting: Setting, arm: Arm, floor: float | None) -> _Gate:
    pair = _pair(setting.by("measure")["answers"], arm)
    bottom_up, top_down = (
        100 * mean(float(unpacked(run["right"]).mean()) for run in runs) if runs else 0.0
        for runs in (pair.theirs, pair.ours)
    )
    commonest = 100 * float(pair.ours[0]["commonest"]) if pair.ours else 0.0
    return _Gate(bottom_up, top_down, least_accuracy(setting, floor), commonest)


def _longer(setting: Setting, arm: Arm, closed: bool) -> list[tuple[Cell, ...]]:
    """Accuracy beside a BU network that was trained for as many products as TD was."""
    answers = setting.by("measure")["answers"]
    longer = [each for each in answers.arms if each.label == "BU" and not each.same_recipe(arm)]
    lines = []
    for other in longer:
        seeds = [seed for seed in arm.runs if seed in other.runs]
        pair = Pair([arm.runs[s].figures for s in seeds], [other.runs[s].figures for s in seeds])
        row = Property(f"accuracy (%), BU trained for {other.columns['epochs']} epochs", "answers", 1, _ANSWERS[0].find)
        found = row.find(pair) if len(seeds) >= FEWEST_RUNS else None
        lines.append(_line(row, found, "not tested" if closed else judged([row], [found])[0]))
    return lines


_PRICE = "price: "


def _price(setting: Setting, arm: Arm) -> list[tuple[Cell, ...]]:
    """What TD costs, as multiples of BU's."""
    costs = setting.by("measure").get("cost")
    mine = costs.arm(arm.label, beside=arm) if costs else None
    if mine is None:
        return []
    figures = next(iter(mine.runs.values())).figures
    lines: list[tuple[Cell, ...]] = []
    for name, title in (("parameters", "parameters"), ("macs", "multiply-accumulates")):
        bu, td = figures[name]["BU"], figures[name]["TD"]
        lines.append(
            (f"{_PRICE}{title}", "less", short_count(bu), short_count(td), f"x {td / bu:.2f}", None, None, None)
        )
    for name in ("training", "inference"):
        bu, td = (np.array(figures[name][who]) for who in ("BU", "TD"))
        low, middle, high = np.quantile(td / bu, (0.25, 0.5, 0.75))
        times = (f"{1_000 * median(each):.1f}" for each in (bu, td))
        text = f"x {middle:.2f} (quartiles {low:.2f}, {high:.2f})"
        title = f"{_PRICE}{name} step of {figures['batch']} (ms)"
        lines.append((title, "less", *times, text, None, None, None))
    return lines


def _note(setting: Setting, arm: Arm, gate: _Gate, pairs: Mapping[str, Pair]) -> str:
    said = ["Runs are pairs of trainings from one seed; images of an attack are those that both classify rightly."]
    said.append(f"Trained by {arm.recipe}. Of twenty properties one may be called better or worse by chance.")
    if gate.closed:
        said.append(f"BU reaches {gate.reached:.1f} %, not {gate.least:.1f} %: nothing is tested on it.")
    elif gate.least is None:
        said.append(
            f"Nothing here says whether BU's {gate.reached:.1f} % is what it can reach (give --floor): of a network"
            " trained for longer the same need not hold."
        )
    if gate.only_accuracy and not gate.closed:
        said.append(
            f"BU reaches {gate.reached:.1f} %, TD {gate.top_down:.1f} %, one class alone {gate.commonest:.1f} %: under"
            f" {gate.learnt:.1f} % a network has learnt too little for anything but its accuracy to be tested."
        )
    missing = [name for name in MEASURES if name not in pairs]
    if missing:
        said.append(f"Not measured: {', '.join(missing)}.")
    if "consistency" in pairs:
        said.append("A network that gives all images one class has it under all shifts: read it beside the accuracy.")
    if "worst attack" in pairs:
        said.append(
            f"The worst attack is, at a largest change of {setting.columns['size.bound']:.3g}, the worst of foolbox's"
            " PGD with restarts, FMN and DeepFool, in place of AutoAttack, which no package in good keeping has."
        )
    if "heat maps" in pairs:
        said.append(
            "Heat maps are Grad-CAM at the last map, for the class found; deletion and insertion (Petsiuk et al. 2018)"
            " are areas under its probability, so that confident networks have more of both."
        )
        share = [run["share"] for run in pairs["heat maps"].ours if "share" in run]
        if share:
            covered = 100 * float(unpacked(share[0]).mean())
            said.append(
                f"The object covers {covered:.0f} % of an image, which is what chance has of maximum and energy."
            )
            said += _beside(pairs["heat maps"])
    return " ".join(said)


def _beside(pair: Pair) -> list[str]:
    """What heat maps that know nothing of an image have of boxes and pixels (SPEC 10.5)."""
    untrained = {"BU with random weights": pair.theirs, "TD with random weights": pair.ours}
    others = [("a blob in the middle", "of a blob", pair.ours)]
    others += [(who, "of random weights", runs) for who, runs in untrained.items()]
    said = []
    for title, name in (("MaxBoxAccV2", "boxes"), ("PxAP", "pixels")):
        if name in pair.ours[0]:
            values = ", ".join(f"{who} {_alone(name, f'{name} {which}', runs):.1f}" for who, which, runs in others)
            said.append(f"{title} of what knows nothing: {values}; what does not beat these does not localise.")
    return said


def _alone(kind: str, name: str, runs: Sequence[Mapping[str, Any]]) -> float:
    """A network's MaxBoxAccV2 or PxAP by itself."""
    values = _with_objects(runs, name) if kind == "pixels" else np.stack([unpacked(run[name]) for run in runs])
    of_runs, of_images = (np.ones((1, count)) for count in values.shape[:2])
    return float((average_precision if kind == "pixels" else box_accuracy)(values, of_runs, of_images)[0])
