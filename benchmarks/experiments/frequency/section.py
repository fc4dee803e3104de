"""What the frequency experiment shows: heat maps of the blurs, tables of the other parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

from td_compiler.benchmarks.data.parts import PARTS
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.table import COMPARED, Arm, Setting, settings
from td_compiler.benchmarks.show.style import figure
from td_compiler.benchmarks.show.tables import Figure, Section, Table, mean_and_deviation
from td_compiler.benchmarks.training.recipes import epochs_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

__all__ = ["frequency_section"]

_INTRO = (
    "What networks make of low and of high frequencies, and top-down networks that are fed or trained in other ways"
    " (thesis 3.2). Accuracies are in per cent, mean ± standard deviation over runs."
)


_COMPARED = COMPARED | {"data", "content", "tests", "frozen"}


def frequency_section(results: Sequence[Result]) -> Section:
    """Tables and figures of all results of the experiment: a group for each part, data set, network and size."""
    found = settings(results, _COMPARED)
    tables: list[Table] = []
    figures: list[Figure] = []
    for setting in sorted(found, key=lambda each: list(PARTS).index(str(each.columns["part"]))):
        part = str(setting.columns["part"])
        heading = f"{PARTS[part].title}: {setting.title}"
        note = f"{PARTS[part].note} {setting.recipe}"
        if part in {"blur", "cosines"}:
            matrices = _matrices(setting)
            tables.append(_matrix_table(heading, matrices, note))
            stem = f"frequency-{part}-{setting.stem}"
            figures.append(Figure(heading, stem, partial(_draw, matrices), note))
        else:
            tables.append(_table(setting, heading, note))
    return Section("Frequency", _INTRO, tables, figures)


Matrix = Mapping[tuple[str, str], Sequence[float]]
"""(trained on, tested on) -> accuracies of the runs."""


def _matrices(setting: Setting) -> dict[str, Matrix]:
    """The matrix of each network by its name."""
    matrices: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for arm in setting.arms:
        for run in arm.runs.values():
            for tested, accuracy in run.figures["accuracy"].items():
                matrices[setting.name(arm)][str(arm.columns["data"]), tested].append(accuracy)
    return dict(matrices)


def _sigma(name: str) -> str:
    """The blur in the name of a data set: `0.6`, or `none`."""
    kind, _, rest = name.partition(":")
    return rest.partition(":")[0] if kind == "blur" else "none"


def _axes(matrices: Mapping[str, Matrix]) -> tuple[list[str], list[str]]:
    """What was trained on, and what was tested on, the sharpest first."""
    pairs = [pair for matrix in matrices.values() for pair in matrix]

    def order(name: str) -> float:
        return 0.0 if _sigma(name) == "none" else float(_sigma(name))

    return sorted({pair[0] for pair in pairs}, key=order), sorted({pair[1] for pair in pairs}, key=order)


def _matrix_table(heading: str, matrices: Mapping[str, Matrix], note: str) -> Table:
    trained, tested = _axes(matrices)
    rows = [
        (label, _sigma(one), *(mean_and_deviation(matrix.get((one, other), ()), 1, 100) for other in tested))
        for label, matrix in matrices.items()
        for one in trained
    ]
    columns = ("network", "trained, sigma", *(f"tested, sigma {_sigma(name)}" for name in tested))
    return Table(heading, columns, tuple(rows), note)


def _draw(matrices: Mapping[str, Matrix]) -> Plot:
    """A panel for each network, one scale of colours for all."""
    trained, tested = _axes(matrices)
    values = {
        label: [[100 * mean(matrix[one, other]) for other in tested] for one in trained]
        for label, matrix in matrices.items()
    }
    lowest = min(value for rows in values.values() for row in rows for value in row)
    plot = figure(0.6 + 2.6 * len(values), 2.6)
    panels = plot.subplots(1, len(values), squeeze=False)[0]
    for axes, (label, rows) in zip(panels, values.items(), strict=True):
        shown = axes.imshow(rows, cmap="viridis", vmin=lowest, vmax=100)
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                ink = "black" if value > (lowest + 100) / 2 else "white"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=ink)
        axes.set_title(label)
        axes.set_xticks(range(len(tested)), [_sigma(name) for name in tested])
        axes.set_yticks(range(len(trained)), [_sigma(name) for name in trained])
        axes.set_xlabel("tested, sigma")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("trained, sigma")
    plot.colorbar(shown, ax=list(panels), label="Accuracy (%)", shrink=0.9)
    return plot


def _table(setting: Setting, heading: str, note: str) -> Table:
    """A row for each network and way of training, a column for each test."""
    rows: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for arm in setting.arms:
        for run in arm.runs.values():
            for column, accuracy in _columns(arm, run.figures["accuracy"]).items():
                rows[setting.name(arm), _way(arm, run)][column].append(accuracy)
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [
        (label, way, *(mean_and_deviation(cells.get(column, ()), 1, 100) for column in columns))
        for (label, way), cells in rows.items()
    ]
    return Table(heading, ("network", "trained", *columns), tuple(lines), note)


def _columns(arm: Arm, found: Any) -> dict[str, float]:
    """Accuracies by what they are of."""
    if isinstance(found, list):
        early = {f"with {_stages(i + 1)}": accuracy for i, accuracy in enumerate(found[:-1])}
        return {"whole network": found[-1], **early}
    if arm.columns["part"] == "fourier":
        base, own = str(arm.columns["base"]), str(arm.columns["data"])
        return {"tested on the images": found[base], "on what it was trained on": found[own]}
    return {"whole network" if arm.columns["part"] == "growing" else "tested": next(iter(found.values()))}


def _stages(count: int) -> str:
    return f"{count} stage" if count == 1 else f"{count} stages"


def _way(arm: Arm, run: Result) -> str:
    """What or how a network was trained."""
    kind, _, rest = str(arm.columns["data"]).partition(":")
    epochs: Any = arm.columns["epochs"]
    if "frozen" in arm.columns:
        how = "grown, earlier stages frozen" if arm.columns["frozen"] else "grown"
        return f"{how}, {epochs_in_words(sum(run.figures['epochs']))}"
    if arm.columns["part"] == "growing":
        return f"at once, {epochs_in_words(epochs)}"
    filters = {"lowpass": "low frequencies", "highpass": "high frequencies"}
    return f"{filters[kind]}, radius {rest.partition(':')[0]}" if kind in filters else "the images"
