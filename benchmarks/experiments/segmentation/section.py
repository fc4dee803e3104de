"""What the segmentation experiment shows: intersection over union beside the published one, and example images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.lab.table import Arm, Setting, settings
from td_compiler.benchmarks.show.plots import Bars, bars, legend
from td_compiler.benchmarks.show.style import COLOURS, OTHERS, figure
from td_compiler.benchmarks.show.tables import Cell, Figure, Section, Table, mean_and_deviation, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

__all__ = ["segmentation_section", "segmentation_settings"]

# SPEC 7, per cent.
_PUBLISHED = {"fcn-light": 76.0, "unet-like": 81.0, "td": 75.0}
_COLOURS = {
    "fcn-light": OTHERS[0],
    "unet-like": COLOURS["bu"],
    "td": COLOURS["mirror"],
    "td-uniform": COLOURS["uniform"],
    "td-reversed": COLOURS["reversed"],
}
_TITLES = {
    "fcn-light": "FCN-light",
    "unet-like": "U-Net-like",
    "td": "TD",
    "td-uniform": "TD uniform",
    "td-reversed": "TD reversed",
}
_INTRO = (
    "Semantic segmentation of meshes of images (paper, experiment 3): FCN-light and U-Net-like against the top-down"
    " network of the U-Net's encoder with a classifier of pixels. A pixel of an object has the object's class; pixels"
    " between background and object count neither in the loss nor in the intersection over union (IoU)."
)


def segmentation_section(results: Sequence[Result]) -> Section:
    """Tables and figures of all results of the experiment."""
    tables: list[Table] = []
    figures: list[Figure] = []
    for setting in segmentation_settings(results):
        group = {_network(arm): list(arm.runs.values()) for arm in setting.arms}
        tables += [_overview(setting, group), _classes(setting.title, group)]
        figures += [
            Figure(f"IoU of every class, {setting.title}", f"segmentation-iou-{setting.stem}", partial(_bars, group)),
            Figure(
                f"What the networks see, {setting.title}",
                f"segmentation-examples-{setting.stem}",
                partial(_pictures, group),
                "Test images, the true classes of their pixels (white: ignored), and those that the networks give.",
            ),
        ]
    return Section("Segmentation", _INTRO, tables, figures)


Group = dict[str, list[Result]]  # network -> its runs


def segmentation_settings(results: Sequence[Result]) -> list[Setting]:
    """What can be compared: all networks of a width, in the order of the table."""
    found = settings(results, compared=("network", "arrangement"))
    order = list(_TITLES)
    return [replace(s, arms=sorted(s.arms, key=lambda arm: order.index(_network(arm)))) for s in found]


def _network(arm: Arm) -> str:
    return str(arm.columns["network"]).partition(":")[2]


def _of(runs: Sequence[Result], figure: str) -> list[float]:
    return [result.figures[figure] for result in runs]


def _overview(setting: Setting, group: Group) -> Table:
    reference = _of(group.get("unet-like", ()), "seconds_per_epoch")
    rows: list[tuple[Cell, ...]] = [
        (
            _TITLES[network],
            int(runs[0].figures["parameters"]),
            mean_and_deviation(_of(runs, "mean_iou"), 1, 100),
            _PUBLISHED.get(network),
            mean_and_deviation(_of(runs, "seconds_per_epoch"), 1),
            ratio(_of(runs, "seconds_per_epoch"), reference),
            round(max(_of(runs, "peak_memory")) / 2**20),
            len(runs),
        )
        for network, runs in group.items()
    ]
    columns = ("network", "parameters", "mean IoU %", "published %", "s / epoch", "/ U-Net-like", "memory MiB", "runs")
    note = f"Mean IoU over the classes and the background; ± is the standard deviation over runs. {setting.recipe}"
    return Table(f"Segmentation: {setting.title}", columns, tuple(rows), note)


def _classes(title: str, group: Group) -> Table:
    names = list(next(iter(group.values()))[0].figures["iou"])
    rows = [
        (
            name,
            *(mean_and_deviation([100 * result.figures["iou"][name] for result in runs], 1) for runs in group.values()),
        )
        for name in names
    ]
    return Table(f"IoU of every class, per cent: {title}", ("class", *(_TITLES[n] for n in group)), tuple(rows))


def _bars(group: Group) -> Plot:
    import statistics

    plot = figure(6.5, 3.0)
    axes = plot.add_subplot()
    names = list(next(iter(group.values()))[0].figures["iou"])
    series = []
    for network, runs in group.items():
        values = [[100 * result.figures["iou"][name] for result in runs] for name in names]
        deviations = [statistics.stdev(each) if len(each) > 1 else None for each in values]
        look = {"color": _COLOURS[network], "label": _TITLES[network]}
        series.append(Bars([statistics.mean(each) for each in values], deviations, look))
    bars(axes, names, series)
    axes.set_ylabel("IoU (%)")
    axes.set_ylim(0, 100)
    axes.tick_params(axis="x", labelrotation=30)
    legend(plot)
    return plot


def _pictures(group: Group) -> Plot:
    """A row for each test image: it, its classes, and what each network makes of it."""
    first = {network: runs[0].figures["examples"] for network, runs in group.items()}
    examples = next(iter(first.values()))
    columns: list[tuple[str, Callable[[int], dict[str, Any]]]] = [
        ("true", lambda row: {**examples[row], "pixels": examples[row]["true"]})
    ]
    for network, own in first.items():
        columns.append((_TITLES[network], lambda row, own=own: {**own[row], "pixels": own[row]["found"]}))  # type: ignore[misc]
    plot = figure(1.2 * (len(columns) + 1), 1.25 * len(examples) + 0.2)
    grid = plot.subplots(len(examples), len(columns) + 1, squeeze=False)
    for row, example in enumerate(examples):
        _show_image(grid[row][0], example)
        for axes, (_, read) in zip(grid[row][1:], columns, strict=True):
            _show_classes(axes, read(row), len(next(iter(group.values()))[0].figures["iou"]))
    for axes, name in zip(grid[0], ("image", *(name for name, _ in columns)), strict=True):
        axes.set_title(name)
    for axes in grid.flat:
        axes.set_axis_off()
    return plot


def _show_image(axes: Any, example: dict[str, Any]) -> None:
    image = unpacked(example["image"]).transpose(1, 2, 0)
    axes.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray", interpolation="nearest")


def _show_classes(axes: Any, example: dict[str, Any], counted: int) -> None:
    """The classes of pixels in colours of their own, the background black, what is ignored white."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    colours = [*matplotlib.colormaps["tab20"].colors[: counted - 1], (0, 0, 0), (1, 1, 1)]  # type: ignore[attr-defined]
    pixels = unpacked(example["pixels"])
    axes.imshow(pixels, cmap=ListedColormap(colours), vmin=0, vmax=counted, interpolation="nearest")
