"""What the refine experiment shows: the cost of windows, and the accuracy with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.table import Arm, Setting, settings
from td_compiler.benchmarks.lab.table import columns as columns_of
from td_compiler.benchmarks.show.tables import Cell, Section, Table, mean_and_deviation, ratio
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
    windows = settings([result for result in results if result.job["part"] == "accuracy"], ("patch",))
    tables = [_costs(costs)] if costs else []
    tables += [_accuracies(setting) for setting in windows]
    return Section("Refining one window", _INTRO, tables)


def _share(patch: str) -> str:
    return f"{float(patch):g}"


def _costs(results: Sequence[Result]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        figures, network = result.figures, Arm(columns_of(result), {})
        label = f"{network.columns['network']} {network.label}"
        for patch in figures["macs"]:
            row: list[Cell] = [label, result.job["side"], figures["from_scale"], _share(patch)]
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


def _accuracies(setting: Setting) -> Table:
    arms = {str(arm.columns["patch"]): arm for arm in setting.arms}
    whole = arms.get("1.0")

    def of(arm: Arm | None, figure: str, patch: str | None = None) -> list[float]:
        values = arm.values(figure) if arm else []
        return values if patch is None else [value[patch] for value in values]

    rows = [
        (
            _share(patch),
            ratio(of(arm, "macs", patch), of(arm, "macs", "1.0")),
            ratio(of(arm, "seconds_per_epoch"), of(whole, "seconds_per_epoch")),
            mean_and_deviation(of(whole, "accuracy", patch), 1, 100),
            mean_and_deviation(of(arm, "accuracy", patch), 1, 100),
            mean_and_deviation(of(arm, "elsewhere"), 1, 100),
        )
        for patch, arm in arms.items()
    ]
    columns = ("patch", "MACs", "seconds / epoch", "trained as a whole", "trained with the window", "at random")
    label = setting.arms[0].label
    return Table(f"{setting.title}, {label}", columns, tuple(rows), f"{_ACCURACY_NOTE} {setting.recipe}")
