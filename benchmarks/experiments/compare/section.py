"""What `compare` says: one table for each top-down network, property by property better, worse or undecided (SPEC 10).

Differences are between networks paired by seed, with 95 % intervals by bootstrap over runs and images together. The
word is the whole interval's; of several attacks, and of several corruptions, only what is left of it after Holm's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import numpy as np

from td_compiler.benchmarks.experiments.compare.jobs import MEASURES
from td_compiler.benchmarks.experiments.compare.properties import (
    ACCURACY,
    PROPERTIES,
    Finding,
    Pair,
    Property,
    average_precision,
    box_accuracy,
    judged,
    with_objects,
)
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.lab.statistics import FEWEST_RUNS
from td_compiler.benchmarks.lab.table import COMPARED, Arm, Setting, settings
from td_compiler.benchmarks.show.findings import least_accuracy
from td_compiler.benchmarks.show.tables import Cell, Section, Table
from td_compiler.report.tables import short_count

__all__ = ["section", "summary", "table"]


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
    tested = [not gate.closed and (row is ACCURACY or not gate.only_accuracy) for row in rows]
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
        row = replace(ACCURACY, name=f"{ACCURACY.name}, BU trained for {other.columns['epochs']} epochs")
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
    values = with_objects(runs, name) if kind == "pixels" else np.stack([unpacked(run[name]) for run in runs])
    of_runs, of_images = (np.ones((1, count)) for count in values.shape[:2])
    return float((average_precision if kind == "pixels" else box_accuracy)(values, of_runs, of_images)[0])
