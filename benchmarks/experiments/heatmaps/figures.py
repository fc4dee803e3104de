"""Heat maps as figures: a row a network, a column a place in it, as in the papers' Grad-CAM figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.lab.table import COMPARED, Setting, settings, slug
from td_compiler.benchmarks.show.style import NAMES, figure
from td_compiler.benchmarks.show.tables import Figure, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Plot

__all__ = ["decode", "section"]

_CAPTION = (
    "Heat maps are of the class named above the image (of the class found, for photographs), each scaled to its largest"
    " value; a map without positive evidence stays dark. *: the network finds another class."
)
_AT_IMAGE = {"saliency": "saliency", "guided": "guided b.p."}  # heat maps that belong to no stage
_CELL, _TITLE = 0.68, 0.17  # inches: the side of a picture, the line above it
_LETTERS = 13  # so many fit above a picture


def section(results: Sequence[Result]) -> Section:
    """A figure for each network and data set, BU and TD in turn."""
    photos = [result.job["shown"].startswith("photo:") for result in results]
    figures: list[Figure] = []
    for photo in (False, True):
        shown = [result for result, is_photo in zip(results, photos, strict=True) if is_photo is photo]
        for setting in settings(shown, COMPARED | {"shown", "content", "weights", "sources"}):
            seeds = sorted({seed for arm in setting.arms for seed in arm.runs})
            figures += [figure for seed in seeds for figure in _figures(setting, seed, photo=photo)]
    return Section(
        "Where networks look",
        "Grad-CAM at the input of the first stage, at the output of every stage (1/4: maps a fourth of the image's"
        " size) and at the last map before the head pools it; BU runs from fine to coarse, TD from coarse to fine"
        " (paper, Exp. 3.a). Saliency and guided backpropagation (b.p.) are at the image itself.",
        figures=figures,
    )


def _figures(setting: Setting, seed: int, *, photo: bool) -> Iterator[Figure]:
    """The networks of a setting in one run, all photographs together; those without weights apart."""
    by_way: dict[str, list[Result]] = {}
    for arm in setting.arms:
        if seed in arm.runs:
            given = "given weights" if arm.columns.get("weights") else "untrained"
            by_way.setdefault(f"run {seed}" if "epochs" in arm.columns else given, []).append(arm.runs[seed])
    for way, results in by_way.items():
        name = ", ".join(["photographs"] * photo + [setting.title, way])
        yield Figure(name, f"explain-{slug(name)}", partial(_draw, results), _CAPTION)


def decode(content: dict[str, Any]) -> NDArray[np.float32]:
    """A packed image: (H, W) for one channel, else (H, W, C), in [0, 1]."""
    image = (unpacked(content) / 255).astype(np.float32)
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _draw(results: Sequence[Result]) -> Plot:
    """For every image a row a network: the image, Grad-CAM from tap to tap, then what belongs to no stage."""
    rows = [row for images in _by_image(results).values() for row in images]
    taps = max(len(result.figures["taps"]) for result in results)
    columns = 1 + taps + len(_AT_IMAGE)
    plot = figure(_CELL * (columns + 0.6), len(rows) * (_CELL + _TITLE) + 0.1)
    grid = plot.subplots(len(rows), columns, squeeze=False)
    for axes, (result, number) in zip(grid, rows, strict=True):
        _draw_row(axes, result, number, taps)
    return plot


def _by_image(results: Sequence[Result]) -> Mapping[tuple[str, int], list[tuple[Result, int]]]:
    """The networks' results for each image, BU first: (data, place in it) -> (result, place in it)."""
    order = list(NAMES)
    rows: dict[tuple[str, int], list[tuple[Result, int]]] = defaultdict(list)
    for result in sorted(results, key=lambda each: order.index(_arrangement(each))):
        for number in range(len(result.figures["images"])):
            rows[result.job["shown"], number].append((result, number))
    return rows


def _arrangement(result: Result) -> str:
    arrangement: str = (result.job["training"] or result.job["given"])["network"]["arrangement"]
    return arrangement


def _draw_row(row: Sequence[Axes], result: Result, number: int, taps: int) -> None:
    shown: dict[str, Any] = result.figures["images"][number]
    image = decode(shown["image"])
    for axes in row:
        axes.set_axis_off()
    row[0].set_axis_on()
    row[0].set(xticks=[], yticks=[])
    row[0].spines[:].set_visible(False)
    row[0].set_ylabel(NAMES[_arrangement(result)], fontsize=8, rotation=0, ha="right", va="center")
    row[0].imshow(image, cmap="gray", vmin=0, vmax=1)
    row[0].set_title(_caption(result, shown), fontsize=7, pad=2)
    for axes, tap in zip(row[1:], result.figures["taps"], strict=False):
        axes.imshow(_overlay(image, decode(shown["maps"][tap])))
        axes.set_title(_tap_title(tap), fontsize=7, pad=2)
    for axes, (name, heading) in zip(row[1 + taps :], _AT_IMAGE.items(), strict=True):
        if name in shown["maps"]:
            axes.imshow(decode(shown["maps"][name]), cmap="gray", vmin=0, vmax=1)
            axes.set_title(heading, fontsize=7, pad=2)


def _caption(result: Result, shown: Mapping[str, Any]) -> str:
    name = shown["explained"] if shown["labelled"] else Path(result.job["shown"].split(":", 2)[2]).stem
    short = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 2]}.."
    return short if shown["found"] == shown["explained"] else f"{short} *"


def _tap_title(tap: str) -> str:
    return f"1/{tap.removeprefix('stage')}" if tap.startswith("stage") else tap


def _overlay(image: NDArray[np.float32], heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """A heat map (H, W) in colour over an image, both in [0, 1]: (H, W, 3)."""
    from matplotlib import colormaps

    grey = image if image.ndim == 2 else image.mean(-1)
    colours: NDArray[np.float32] = colormaps["inferno"](heat)[..., :3]
    return (0.4 * grey[..., None] + 0.6 * colours).astype(np.float32)
