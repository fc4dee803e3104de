"""What the localisation experiment shows: precision, recall and IoU, as in the paper's figure 9 and the thesis' 10."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.lab.statistics import Array, Estimate, estimate, sums
from td_compiler.benchmarks.lab.table import COMPARED, Arm, Setting, settings
from td_compiler.benchmarks.show.plots import Bars, bars, legend
from td_compiler.benchmarks.show.published import published
from td_compiler.benchmarks.show.style import NAMES, figure
from td_compiler.benchmarks.show.tables import Cell, Figure, Section, Table, mean_and_deviation

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

__all__ = ["BASELINES", "FORMS", "gain", "measures", "section"]

FORMS = ("as it is", "mean taken away")  # the thesis's, and that of the authors' code
BASELINES = ("whole image", "blob", "bottom_up, random", "top_down, random")
_MEASURES = {"precision": "precision", "recall": "recall", "iou": "IoU", "image_iou": "IoU per image"}
_PLACES = {"last": "last map", "stage": "last stage"}
_SIDES = ("bottom_up", "top_down")
_MORE = ("IoU, TD - it", "published", "runs")

_NAMES = {
    **{"bottom_up": "BU", "top_down": "TD", "blob": "a blob in the middle"},
    **{"bottom_up, random": "BU, random weights", "top_down, random": "TD, random weights"},
}

Counts = NDArray[np.int64]


def counts(run: Result, who: str, place: str, form: str) -> Counts:
    """Of each image (N, 3): the heat map's pixels on the object, all its pixels, the object's."""
    found, objects = unpacked(run.figures["maps"][who][place][form]), unpacked(run.figures["objects"])
    return np.concatenate([found, objects[:, None]], 1)


def measures(found: Counts) -> dict[str, float]:
    """Precision, recall and IoU of all images' pixels together, and the mean of the images' own IoU.

    A ratio of 0 to 0 counts as 0.
    """
    hits, marked, objects = found.sum(0)
    each = found[found[:, 2] > 0]
    own = each[:, 0] / (each[:, 1] + each[:, 2] - each[:, 0])
    return {
        "precision": float(hits / max(marked, 1)),
        "recall": float(hits / max(objects, 1)),
        "iou": float(hits / max(marked + objects - hits, 1)),
        "image_iou": float(own.mean()) if len(own) else 0.0,
    }


def gain(arm: Arm, measure: str, form: str, other: str = "bottom_up", place: str = "last") -> Estimate:
    """By how many points a measure of TD's heat maps is above another's, by bootstrap over runs and images."""
    pairs = [
        np.concatenate([counts(run, "top_down", place, form), counts(run, other, at, form)], 1)
        for run in arm.runs.values()
        for at in [place if place in run.figures["maps"][other] else "last"]
    ]
    values = np.stack(pairs)  # (R, N, 6)

    def difference(of_runs: Array, of_images: Array) -> Array:
        total = sums(values, of_runs, of_images)
        return 100 * (_pooled(total[:, :3], measure) - _pooled(total[:, 3:], measure))

    return estimate(difference, values.shape[0], values.shape[1])


def _pooled(total: Array, measure: str) -> Array:
    hits, marked, objects = total.T
    below = {"precision": marked, "recall": objects, "iou": marked + objects - hits}[measure]
    share: Array = hits / np.maximum(below, 1)
    return share


def section(results: Sequence[Result]) -> Section:
    """A table for each network and data set, precision and recall and IoU as bars."""
    found = settings(results, COMPARED | {"bottom_up.options"})
    return Section(
        "Localisation by Grad-CAM",
        "How well the heat map of an image's class covers the object, over the images that both networks classify"
        " rightly (paper, Exp. 3.b), as it is (thesis) and with its mean taken away before negative values are cut off"
        " (the authors' code). The last map is the one that the head pools, after the last convolution, as in the"
        " paper; the last stage's is before the head's own convolution. What beats neither the whole image, nor a blob"
        " in its middle, nor the same network with random weights, does not localise.",
        tables=[_table(setting, arm) for setting in found for arm in setting.arms],
        figures=[_figure(found, "Precision and recall", ("precision", "recall")), _figure(found, "IoU", ("iou",))],
    )


def _values(arm: Arm, who: str, place: str, form: str, measure: str) -> list[float]:
    return [measures(counts(run, who, place, form))[measure] for run in arm.runs.values()]


def _table(setting: Setting, arm: Arm) -> Table:
    rows = [_row(arm, place, form, who) for place in _PLACES for form in FORMS for who in _SIDES]
    rows += [_row(arm, "last", form, who) for form in FORMS for who in BASELINES if form == FORMS[0] or "," in who]
    right = mean_and_deviation(arm.values("images"), 0)
    threshold = f"threshold {arm.columns['threshold']:g}"
    return Table(
        f"{setting.title}, {setting.name(arm)}, {threshold}",
        (
            "heat map",
            "form",
            "of",
            *(f"{name} (%)" for name in _MEASURES.values()),
            "IoU, TD - it",
            "published",
            "runs",
        ),
        tuple(rows),
        "Mean ± standard deviation over runs; differences in points, with 95 % intervals. Precision, recall and IoU are"
        f" of all images' pixels together; both networks classify {right} images rightly. {setting.recipe}",
    )


def _row(arm: Arm, place: str, form: str, who: str) -> tuple[Cell, ...]:
    difference = None
    if who != "top_down" and len(arm.runs) > 1:
        difference = gain(arm, "iou", form, who, place).text()
    elif who != "top_down":
        ours, theirs = (_values(arm, each, place, form, "iou")[0] for each in ("top_down", who))
        difference = f"{100 * (ours - theirs):+.2f}"
    about: Any = arm.columns
    known = published("localise", about["data"], about["network"], about["arrangement"])
    shown = known if (who, place, form) == ("bottom_up", "last", FORMS[1]) else ""
    return (
        _PLACES[place],
        form if who in _SIDES or "," in who else None,
        _NAMES.get(who, who),
        *(mean_and_deviation(_values(arm, who, place, form, measure), 1, 100) for measure in _MEASURES),
        difference,
        shown or None,
        len(arm.runs),
    )


def _figure(found: Sequence[Setting], name: str, shown: Sequence[str]) -> Figure:
    stem = "localise_" + "_".join(shown)
    note = "Of the last map, its mean taken away; mean and standard deviation over runs."
    return Figure(name, stem, partial(_draw, found, shown), note)


def _draw(found: Sequence[Setting], shown: Sequence[str]) -> Plot:
    """A panel for each measure, bars by data set and network."""
    plot = figure(max(3.25, 1.6 * len(found)) * len(shown), 2.4)
    for axes, measure in zip(plot.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        groups = ["\n".join(setting.title.split(", ")[0].split(" on ")[::-1]) for setting in found]
        bars(axes, groups, _series(found, measure), values=".1f")
        axes.set_ylabel(f"{_MEASURES[measure]} (%)")
    legend(plot)
    return plot


def _series(found: Sequence[Setting], measure: str) -> list[Bars]:
    """The bars of every arrangement, a place for each setting; BU is that beside the first of them."""
    runs: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for place, setting in enumerate(found):
        for arm in setting.arms:
            runs["bu"].setdefault(place, _values(arm, "bottom_up", "last", FORMS[1], measure))
            runs[str(arm.columns["arrangement"])][place] = _values(arm, "top_down", "last", FORMS[1], measure)
    return [
        Bars.of(
            arrangement,
            [100 * mean(each) if (each := runs[arrangement].get(place)) else None for place in range(len(found))],
            [
                100 * stdev(each) if len(each := runs[arrangement].get(place, [])) > 1 else None
                for place in range(len(found))
            ],
        )
        for arrangement in NAMES
        if arrangement in runs
    ]
