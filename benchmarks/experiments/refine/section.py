"""What the refine experiment shows: the cost of windows, and the accuracy with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.lab.journal import Result
from benchmarks.show.tables import Cell, Section, Table, mean_and_deviation, ratio
from benchmarks.training.networks import NetworkSpec
from benchmarks.training.recipes import size_in_words
from td_compiler.report.tables import byte_count, short_count

__all__ = ["refine_section"]

_INTRO = (
    "Top-down networks that see the whole image coarsely and one window of it finely (`td_compiler.network.refine`)."
    " The patch"
    " is the window's share of the image's height and width; 1 is the network as it is. The window is where the coarse"
    " map differs most from its mean."
)
_COST_NOTE = (
    "In brackets as a share of the whole network's. MACs are of one image, as run. Memory is what the forward pass"
    " keeps for the backward pass, seconds (of the processor, in all threads) are medians of all patches in turns; both"
    " are for two images."
)
_ACCURACY_NOTE = (
    "Accuracy in per cent, mean ± standard deviation over runs: trained as a whole and tested with the window; trained"
    " and tested with it; the same, tested with a window at a random place. MACs of testing an image and seconds of a"
    " training epoch as shares of the whole network's."
)


def refine_section(results: Sequence[Result]) -> Section:
    """A table of costs for all networks, one of accuracies for each data set, network and size of training."""
    costs = [result for result in results if result.job["part"] == "cost"]
    settings: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        if result.job["part"] == "accuracy":
            training = result.job["training"]
            settings[training["data"], _label(training["network"]), size_in_words(training)].append(result)
    tables = [_costs(costs)] if costs else []
    tables += [_accuracies(setting, group) for setting, group in settings.items()]
    return Section("Refining one window", _INTRO, tables, commands=list(dict.fromkeys(r.command for r in results)))


def _label(network: dict[str, Any]) -> str:
    spec = NetworkSpec(network["name"], network["arrangement"], tuple(map(tuple, network["options"])))
    return f"{spec.name} {spec.label}"


def _share(patch: str) -> str:
    return f"{float(patch):g}"


def _costs(results: Sequence[Result]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        figures = result.figures
        for patch in figures["macs"]:
            row: list[Cell] = [_label(result.job["network"]), result.job["side"], figures["from_scale"], _share(patch)]
            for name, words in _COSTS.items():
                value, whole = figures[name][patch], figures[name]["1.0"]
                row.append(f"{words(value)} ({value / whole:.2f})")
            rows.append(tuple(row))
    columns = ("network", "side", "from scale", "patch", "MACs", "memory", "s, inference", "s, training step")
    return Table("Cost of windows", columns, tuple(rows), _COST_NOTE)


_COSTS: dict[str, Any] = {
    "macs": short_count,
    "bytes": byte_count,
    "inference": "{:.2f}".format,
    "step": "{:.2f}".format,
}


def _accuracies(setting: tuple[str, ...], results: Sequence[Result]) -> Table:
    from benchmarks.data.datasets import title

    runs: dict[str, list[Result]] = defaultdict(list)  # by patch in training
    for result in results:
        runs[str(result.job["patch"])].append(result)
    whole = runs.get("1.0", [])
    seconds = {patch: [run.figures["seconds_per_epoch"] for run in own] for patch, own in runs.items()}
    rows = [
        (
            _share(patch),
            ratio([run.figures["macs"][patch] for run in own], [run.figures["macs"]["1.0"] for run in own]),
            ratio(seconds[patch], seconds.get("1.0", ())),
            mean_and_deviation([run.figures["accuracy"][patch] for run in whole], 1, 100),
            mean_and_deviation([run.figures["accuracy"][patch] for run in own], 1, 100),
            mean_and_deviation([run.figures["elsewhere"] for run in own], 1, 100),
        )
        for patch, own in runs.items()
    ]
    data, network, size = setting
    columns = ("patch", "MACs", "seconds / epoch", "trained as a whole", "trained with the window", "at random")
    return Table(f"{network} on {title(data)}, {size}", columns, tuple(rows), _ACCURACY_NOTE)
