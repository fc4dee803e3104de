"""The plots of the robustness experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from td_compiler.benchmarks.show.plots import legend
from td_compiler.benchmarks.show.style import figure, line

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

    from td_compiler.benchmarks.experiments.robustness.groups import AttackRun, AttackRuns
    from td_compiler.benchmarks.lab.table import Setting

__all__ = ["draw_corruptions", "draw_curves", "draw_vulnerability", "loss_curve"]

_COLUMNS = 4
_POINTS = 200


def loss_curve(runs: Sequence[AttackRun], distances: Sequence[float]) -> list[float]:
    """The accuracy lost within each L2 distance: points of all test images, mean over runs."""
    return [100 * mean(run.lost_within(distance) for run in runs) for distance in distances]


def draw_curves(runs: AttackRuns) -> Plot:
    """A panel for each attack, a curve for each network (the form of the workshop paper's figure 6)."""
    rows = -(-len(runs) // _COLUMNS)
    plot = figure(6.5, 1.55 * rows + 0.4)
    panels = plot.subplots(rows, _COLUMNS, sharey=True, squeeze=False).flat
    for axes, (attack, networks) in zip(panels, runs.items(), strict=False):
        found = [d for each in networks.values() for run in each for d in run.l2[run.right] if d < float("inf")]
        furthest = max(found, default=1.0)
        distances = [1.03 * furthest * i / _POINTS for i in range(_POINTS + 1)]
        for label, each in networks.items():
            axes.plot(distances, loss_curve(each, distances), **{**_look(label), "marker": ""})
        axes.set(title=attack, xlim=(0, 1.03 * furthest), ylim=(0, 102))
        axes.grid(visible=True)
    for axes in list(panels)[len(runs) :]:
        axes.set_axis_off()
    plot.supxlabel("L2 distance", fontsize=8)
    plot.supylabel("Loss of accuracy (points)", fontsize=8)
    legend(plot)
    return plot


def draw_vulnerability(runs: AttackRuns, label: str) -> Plot:
    """A row for each attack, a column for each choice of perturbed scales, the accuracy as colour and number."""
    scales = list(next(iter(runs.values()))[label][0].scales)
    values = [[_accuracy(networks[label], name) for name in scales] for networks in runs.values()]
    plot = figure(max(3.6, 1.8 + 0.42 * len(scales)), 0.9 + 0.22 * len(runs))
    axes = plot.subplots()
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for row, accuracies in enumerate(values):
        for column, accuracy in enumerate(accuracies):
            colour = "black" if accuracy > 60 else "white"  # viridis is light at its upper end
            axes.text(column, row, f"{accuracy:.0f}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(scales)), scales)
    axes.set_yticks(range(len(runs)), list(runs))
    axes.set_xlabel("Scales that see the perturbed image")
    axes.tick_params(length=0)
    plot.colorbar(image, ax=axes, label="Accuracy (%)")
    return plot


def _accuracy(runs: Sequence[AttackRun], scales: str) -> float:
    return 100 * mean(run.scales[scales] / run.images for run in runs)


def draw_corruptions(setting: Setting) -> Plot:
    """A panel for each kind of corruption: error against severity."""
    from td_compiler.benchmarks.attacks.corruptions import CORRUPTIONS, SEVERITIES

    kinds = list(dict.fromkeys(corruption.kind for corruption in CORRUPTIONS.values()))
    plot, highest = figure(6.5, 2.2), 0.0
    for axes, kind in zip(plot.subplots(1, len(kinds), sharey=True), kinds, strict=True):
        names = [name for name, corruption in CORRUPTIONS.items() if corruption.kind == kind]
        for arm in setting.arms:
            label, runs = setting.name(arm), [run.figures for run in arm.runs.values()]
            errors = [_mean_error(runs, names, severity) for severity in (0, *SEVERITIES)]
            axes.plot((0, *SEVERITIES), errors, **_look(label))
            highest = max(highest, *errors)
        axes.set(title=kind, xlabel="severity", xticks=(0, *SEVERITIES))
        axes.grid(visible=True)
    plot.axes[0].set_ylabel("Error (%)")
    plot.axes[0].set_ylim(0, 1.08 * highest or 1)
    legend(plot)
    return plot


def _mean_error(runs: Sequence[Mapping[str, Any]], names: Sequence[str], severity: int) -> float:
    """In per cent, over runs and corruptions; severity 0 is the clean image."""
    if not severity:
        return 100 * mean(run["clean"] for run in runs)
    return 100 * mean(run["errors"][name][severity - 1] for run in runs for name in names)


def _look(label: str) -> dict[str, Any]:
    """An arrangement's look; a thin line where the label names an option besides."""
    arrangement, _, option = label.partition(", ")
    look = line("bu" if arrangement == "BU" else arrangement)
    return {**look, "label": f"{look['label']}, {option}", "linewidth": 0.8} if option else {**look}
