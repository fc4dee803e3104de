"""What the localisation experiment shows: precision, recall and IoU, as in the paper's figure 9 and the thesis' 10."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import TYPE_CHECKING

from benchmarks.data.datasets import title
from benchmarks.lab.journal import Result
from benchmarks.show.plots import Bars, bars, legend
from benchmarks.show.published import published
from benchmarks.show.style import NAMES, figure
from benchmarks.show.tables import Cell, Figure, Section, Table, mean_and_deviation
from benchmarks.training.recipes import size_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

__all__ = ["section"]

_MEASURES = {"precision": "precision", "recall": "recall", "iou": "IoU", "image_iou": "IoU per image"}
_PLACES = {"last": "last map", "stage": "last stage"}
_SIDES = ("bottom_up", "top_down")


@dataclass(frozen=True, order=True)
class _Setting:
    """What runs are averaged over: results that differ in nothing else than the run."""

    data: str
    network: str
    arrangement: str
    size: str

    @property
    def group(self) -> str:
        """Its name below the bars, the same for all arrangements."""
        return f"{title(self.data)}\n{self.network}"


Groups = Mapping[_Setting, Sequence[Result]]


def section(results: Sequence[Result]) -> Section:
    """A table for each network and data set, precision and recall and IoU as bars."""
    groups = _groups(results)
    return Section(
        "Localisation by Grad-CAM",
        "How well the heat map of an image's class covers the object, over the images that both networks classify"
        " rightly (paper, Exp. 3.b). The last map is the one that the head pools, after the last convolution, as in the"
        " paper; the last stage's is before the head's own convolution.",
        tables=[_table(setting, runs) for setting, runs in groups.items()],
        figures=[_figure(groups, "Precision and recall", ("precision", "recall")), _figure(groups, "IoU", ("iou",))],
        commands=list(dict.fromkeys(result.command for result in results)),
    )


def _groups(results: Sequence[Result]) -> Groups:
    groups: dict[_Setting, list[Result]] = defaultdict(list)
    for result in results:
        groups[_setting(result)].append(result)
    return dict(sorted(groups.items()))


def _setting(result: Result) -> _Setting:
    training = result.job["top_down"]
    name, arrangement = training["network"]["name"].removeprefix("zoo:"), training["network"]["arrangement"]
    size = f"{size_in_words(training)}, threshold {result.job['threshold']:g}"
    return _Setting(training["data"], name, arrangement, size)


def _values(runs: Sequence[Result], side: str, place: str, measure: str) -> list[float]:
    return [run.figures[side][place][measure] for run in runs]


def _table(setting: _Setting, runs: Sequence[Result]) -> Table:
    rows = [_row(setting, runs, place, side) for place in _PLACES for side in _SIDES]
    right = mean_and_deviation([run.figures["images"] for run in runs], 0)
    return Table(
        f"{setting.network} on {title(setting.data)}, {setting.size}",
        ("heat map", "network", *(f"{name} (%)" for name in _MEASURES.values()), "IoU, TD - BU", "published", "runs"),
        tuple(rows),
        "Mean ± standard deviation over runs; differences in points. Precision, recall and IoU are of all images'"
        f" pixels together; both networks classify {right} images rightly.",
    )


def _row(setting: _Setting, runs: Sequence[Result], place: str, side: str) -> tuple[Cell, ...]:
    values = {measure: _values(runs, side, place, measure) for measure in _MEASURES}
    top_down = side == "top_down"
    gains = [ours - bu for ours, bu in zip(values["iou"], _values(runs, "bottom_up", place, "iou"), strict=True)]
    return (
        _PLACES[place],
        NAMES[setting.arrangement if top_down else "bu"],
        *(mean_and_deviation(values[measure], 1, 100) for measure in _MEASURES),
        mean_and_deviation(gains, 2, 100) if top_down else None,
        published("localise", setting.data, setting.network, setting.arrangement) or None if top_down else None,
        str(len(runs)),
    )


def _figure(groups: Groups, name: str, measures: Sequence[str]) -> Figure:
    stem = "localise_" + "_".join(measures)
    return Figure(
        name, stem, partial(_draw, groups, measures), "Of the last map; mean and standard deviation over runs."
    )


def _draw(groups: Groups, measures: Sequence[str]) -> Plot:
    """A panel for each measure, bars by data set and network."""
    plot = figure(max(3.25, 1.6 * len(groups)) * len(measures), 2.4)
    for axes, measure in zip(plot.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        names = list(dict.fromkeys((setting.group, setting.size) for setting in groups))
        bars(axes, [group for group, _ in names], _series(groups, measure, names), values=".1f")
        axes.set_ylabel(f"{_MEASURES[measure]} (%)")
    legend(plot)
    return plot


def _series(groups: Groups, measure: str, names: Sequence[tuple[str, str]]) -> list[Bars]:
    """The bars of every arrangement, a place in `names` (group, size) for each; BU is that beside the first of them."""
    runs: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(dict)
    for setting, results in groups.items():
        name = (setting.group, setting.size)
        runs["bu"].setdefault(name, _values(results, "bottom_up", "last", measure))
        runs[setting.arrangement][name] = _values(results, "top_down", "last", measure)
    return [
        Bars.of(
            arrangement,
            [100 * mean(runs[arrangement][name]) if name in runs[arrangement] else None for name in names],
            [100 * stdev(values) if len(values := runs[arrangement].get(name, [])) > 1 else None for name in names],
        )
        for arrangement in NAMES
        if arrangement in runs
    ]
