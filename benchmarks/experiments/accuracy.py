"""Accuracy and cost of bottom-up networks and their top-down networks (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from td_compiler.benchmarks.experiments.gap import gap_table
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.options import Arrangements, DataSets, Networks, Setup, run_command
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.lab.table import Arm, Setting, settings
from td_compiler.benchmarks.show.plots import Bars, bars, legend
from td_compiler.benchmarks.show.published import published
from td_compiler.benchmarks.show.style import figure
from td_compiler.benchmarks.show.tables import Cell, Figure, Section, Table, mean_and_deviation, ratio
from td_compiler.benchmarks.training.networks import ARRANGEMENTS, NetworkSpec
from td_compiler.benchmarks.training.training import Training, trained
from td_compiler.report.tables import byte_count, short_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

__all__ = ["EXPERIMENT", "Accuracy", "main"]


@dataclass(frozen=True)
class Accuracy:
    """Train one network once and test it."""

    experiment: ClassVar[str] = "accuracy"
    revision: ClassVar[int] = 2

    training: Training

    @property
    def data(self) -> str:
        """The data set's name."""
        return self.training.data

    @property
    def name(self) -> str:
        """The job in a line."""
        return f"accuracy {self.training.name}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """The test accuracy from 0 to 1, what the network costs, and how the training went."""
        found = trained(self.training, machine)
        costs = self.training.network.costs(found.input_size, found.classes)
        return {
            "accuracy": found.accuracy,
            "right": packed(found.right),
            **found.counts,
            "parameters": costs.parameters,
            "macs": costs.macs,
            "seconds_per_epoch": found.seconds_per_epoch,
            "peak_memory": found.peak_memory,
            "history": found.history,
        }


def _section(results: Sequence[Result]) -> Section:
    found = settings(results)
    note = "Mean and standard deviation over runs."
    return Section(
        title="Accuracy",
        intro="Test accuracy and cost of bottom-up networks (BU) and of their top-down networks.",
        tables=[*map(_table, found), *filter(None, map(gap_table, found))],
        figures=[Figure("Test accuracy", "accuracy", lambda: _plot(found), note)],
    )


_COLUMNS = ("network", "accuracy (%)", "published", "TD - BU", "runs", "epochs")
# A cost, its heading and how a mean of it is printed.
_COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda number: f"{number:,.0f}"),
    "macs": ("MACs", short_count),
    "seconds_per_epoch": ("seconds / epoch", "{:.2f}".format),
    "peak_memory": ("memory", byte_count),
}


def _table(setting: Setting) -> Table:
    return Table(
        title=setting.title,
        columns=(*_COLUMNS, *(heading for heading, _ in _COSTS.values())),
        rows=tuple(_row(setting, arm) for arm in setting.arms),
        note="Accuracy: mean ± standard deviation over runs; its difference to BU trained alike, in points. Costs:"
        f" means; in brackets as multiples of BU's. {setting.recipe}",
    )


def _row(setting: Setting, arm: Arm) -> tuple[Cell, ...]:
    accuracies = arm.values("accuracy")
    bottom_up = setting.arm("BU", beside=arm) if arm.label != "BU" else None
    difference = f"{100 * (mean(accuracies) - mean(bottom_up.values('accuracy'))):+.2f}" if bottom_up else None
    return (
        setting.name(arm),
        mean_and_deviation(accuracies, scale=100),
        published("accuracy", str(setting.columns["data"]), str(setting.columns["network"]), arm.label) or None,
        difference,
        len(accuracies),
        str(arm.columns["epochs"]),
        *(_cost(name, arm.values(name), bottom_up.values(name) if bottom_up else ()) for name in _COSTS),
    )


def _cost(name: str, values: Sequence[float], reference: Sequence[float]) -> str:
    text = _COSTS[name][1](mean(values))
    return f"{text} ({ratio(values, reference)}x)" if reference else text


def _plot(found: Sequence[Setting]) -> Plot:
    """A group of bars for each setting."""
    plot = figure(width=max(6.5, 1.6 * len(found)))
    axes = plot.subplots()
    labels = list(dict.fromkeys(setting.name(arm) for setting in found for arm in setting.arms))
    named = [{setting.name(arm): arm for arm in setting.arms} for setting in found]
    series = []
    for label in labels:
        runs = [arms[label].values("accuracy") if label in arms else () for arms in named]
        arrangement, _, variant = label.partition(", ")
        series.append(
            Bars.of(
                "bu" if arrangement == "BU" else arrangement,
                [100 * mean(each) if each else None for each in runs],
                [100 * stdev(each) if len(each) > 1 else None for each in runs],
                label if variant else "",
            )
        )
    bars(axes, ["\n".join(setting.title.split(", ")[0].split(" on ")[::-1]) for setting in found], series, values=".1f")
    axes.set_ylabel("Test accuracy (%)")
    legend(plot)
    return plot


EXPERIMENT = Experiment("accuracy", _section)

_NETWORKS, _DATA, _ALL = ["lenet_fc"], ["mnist"], list(ARRANGEMENTS)


def _accuracy(
    setup: Setup,
    networks: Networks = _NETWORKS,
    data: DataSets = _DATA,
    arrangement: Arrangements = _ALL,
    head_width: Annotated[int | None, typer.Option(min=1, help="Also mirror with so many filters at the end.")] = None,
    teacher: Annotated[str, typer.Option(metavar="bu", help="Also mirror with the bottom-up network as teacher.")] = "",
    weights: Annotated[str, typer.Option(metavar="bu", help="Also mirror from the trained bottom-up weights.")] = "",
) -> None:
    """Train networks and their top-down networks and compare accuracy and cost (paper, Exp. 1)."""
    variants: list[tuple[str, dict[str, Any], dict[str, str]]] = [(each, {}, {}) for each in arrangement]
    if head_width is not None:
        variants.append(("mirror", {"head_width": head_width}, {}))
    variants += [("mirror", {}, {name: value}) for name, value in (("teacher", teacher), ("start", weights)) if value]
    jobs = [
        Accuracy(setup.plan(NetworkSpec(source, way, tuple(options.items())), each, run, **helper))
        for each in data
        for source in networks
        for way, options, helper in variants
        for run in setup.runs
    ]
    EXPERIMENT.run(jobs, setup)


main = partial(run_command, _accuracy)
