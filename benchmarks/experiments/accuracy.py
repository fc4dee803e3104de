"""Accuracy and cost of bottom-up networks and their top-down networks (paper section 4.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from benchmarks.data.datasets import title
from benchmarks.lab.experiment import Experiment
from benchmarks.lab.journal import Result
from benchmarks.lab.machine import Machine
from benchmarks.lab.options import Setup, run_command
from benchmarks.show.plots import Bars, bars, legend
from benchmarks.show.published import published
from benchmarks.show.style import figure
from benchmarks.show.tables import Cell, Figure, Section, Table, mean_and_deviation, ratio
from benchmarks.training.networks import ARRANGEMENTS, NetworkSpec
from benchmarks.training.recipes import images_in_words
from benchmarks.training.training import Training, planned, trained
from td_compiler.report.tables import byte_count, short_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

__all__ = ["EXPERIMENT", "Accuracy", "main"]


@dataclass(frozen=True)
class Accuracy:
    """Train one network once and test it."""

    experiment: ClassVar[str] = "accuracy"
    revision: ClassVar[int] = 1

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
            "parameters": costs.parameters,
            "macs": costs.macs,
            "seconds_per_epoch": found.seconds_per_epoch,
            "peak_memory": found.peak_memory,
            "history": found.history,
        }


@dataclass(frozen=True)
class _Setting:
    """What distinguishes groups of results that are compared: all but arrangement and run."""

    data: str
    network: str
    size: str


Runs = Mapping[str, Sequence[float]]
"""Figures by name, one value for each run."""


def _section(results: Sequence[Result]) -> Section:
    settings: dict[_Setting, dict[str, Runs]] = defaultdict(dict)
    for setting, label, figures in _groups(results):
        settings[setting][label] = figures
    return Section(
        title="Accuracy",
        intro="Test accuracy and cost of bottom-up networks (BU) and of their top-down networks.",
        tables=[_table(setting, networks) for setting, networks in settings.items()],
        figures=[
            Figure("Test accuracy", "accuracy", lambda: _plot(settings), "Mean and standard deviation over runs.")
        ],
        commands=list(dict.fromkeys(result.command for result in results)),
    )


def _groups(results: Sequence[Result]) -> list[tuple[_Setting, str, Runs]]:
    """The runs of each network of each setting, settings and networks in the order of the papers' tables."""
    runs: dict[tuple[_Setting, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        training = result.job["training"]
        network = training["network"]
        spec = NetworkSpec(network["name"], network["arrangement"], tuple(map(tuple, network["options"])))
        figures = {"epochs": training["recipe"]["epochs"], **result.figures}
        for name, value in figures.items():
            if not isinstance(value, list):
                runs[_setting(training), spec.label][name].append(value)
    order = ["BU", *ARRANGEMENTS]
    ordered = sorted(runs.items(), key=lambda item: order.index(item[0][1].partition(",")[0]))
    return [(setting, label, figures) for (setting, label), figures in ordered]


def _setting(training: Mapping[str, Any]) -> _Setting:
    return _Setting(training["data"], training["network"]["name"], images_in_words(training))


_COLUMNS = ("network", "accuracy (%)", "published", "TD - BU", "runs", "epochs")
# A cost, its heading and how a mean of it is printed.
_COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda number: f"{number:,.0f}"),
    "macs": ("MACs", short_count),
    "seconds_per_epoch": ("seconds / epoch", "{:.2f}".format),
    "peak_memory": ("memory", byte_count),
}


def _table(setting: _Setting, networks: Mapping[str, Runs]) -> Table:
    bottom_up = networks.get("BU", {})
    return Table(
        title=f"{setting.network} on {title(setting.data)}, {setting.size}",
        columns=(*_COLUMNS, *(heading for heading, _ in _COSTS.values())),
        rows=tuple(_row(setting, label, figures, bottom_up) for label, figures in networks.items()),
        note="Accuracy: mean ± standard deviation over runs. Costs: means; in brackets as multiples of BU's.",
    )


def _row(setting: _Setting, label: str, figures: Runs, bottom_up: Runs) -> tuple[Cell, ...]:
    accuracies = figures["accuracy"]
    difference = f"{100 * (mean(accuracies) - mean(bottom_up['accuracy'])):+.2f}" if bottom_up else None
    top_down = figures is not bottom_up
    return (
        label,
        mean_and_deviation(accuracies, scale=100),
        published("accuracy", setting.data, setting.network, label) or None,
        difference if top_down else None,
        str(len(accuracies)),
        ", ".join(f"{count:g}" for count in dict.fromkeys(figures["epochs"])),
        *(_cost(name, figures[name], bottom_up.get(name, ()) if top_down else ()) for name in _COSTS),
    )


def _cost(name: str, values: Sequence[float], reference: Sequence[float]) -> str:
    text = _COSTS[name][1](mean(values))
    return f"{text} ({ratio(values, reference)}x)" if reference else text


def _plot(settings: Mapping[_Setting, Mapping[str, Runs]]) -> Plot:
    """A group of bars for each setting."""
    plot = figure(width=max(6.5, 1.6 * len(settings)))
    axes = plot.subplots()
    labels = list(dict.fromkeys(label for networks in settings.values() for label in networks))
    series = []
    for label in labels:
        runs = [networks[label]["accuracy"] if label in networks else () for networks in settings.values()]
        arrangement, _, variant = label.partition(", ")
        series.append(
            Bars.of(
                "bu" if arrangement == "BU" else arrangement,
                [100 * mean(each) if each else None for each in runs],
                [100 * stdev(each) if len(each) > 1 else None for each in runs],
                label if variant else "",
            )
        )
    names = [f"{title(setting.data)}\n{setting.network.partition(':')[2]}" for setting in settings]
    bars(axes, names, series, values=".1f")
    axes.set_ylabel("Test accuracy (%)")
    legend(plot)
    return plot


EXPERIMENT = Experiment("accuracy", _section)

_NETWORKS, _DATA, _ALL, _NONE = ["lenet_fc"], ["mnist"], list(ARRANGEMENTS), list[str]()


def _accuracy(
    setup: Setup,
    networks: Annotated[
        list[str], typer.Argument(help="zoo:NAME, torchvision:NAME, timm:NAME or FILE.py.")
    ] = _NETWORKS,
    data: Annotated[list[str], typer.Option(help="Data sets; repeat for several.")] = _DATA,
    arrangement: Annotated[list[str], typer.Option(help="Of bu, mirror, uniform, reversed.")] = _ALL,
    head_width: Annotated[int | None, typer.Option(min=1, help="Also mirror with so many filters at the end.")] = None,
    augment: Annotated[
        str | None, typer.Option(help="none, shift-flip or crop-flip-colour; else the recipe's.")
    ] = None,
    recipe: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="In place of the recipe's.")] = _NONE,
) -> None:
    """Train networks and their top-down networks and compare accuracy and cost (paper, Exp. 1)."""
    variants: list[tuple[str, tuple[tuple[str, Any], ...]]] = [(each, ()) for each in arrangement]
    if head_width is not None:
        variants.append(("mirror", (("head_width", head_width),)))
    jobs = [
        Accuracy(planned(setup.profile, NetworkSpec(source, way, options), each, run, settings=recipe, augment=augment))
        for each in data
        for source in networks
        for way, options in variants
        for run in setup.runs
    ]
    EXPERIMENT.run(jobs, setup)


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the command line; returns the exit status."""
    return run_command(_accuracy, arguments, prog)
