"""A picture of both networks side by side (`tdc inspect --plot`), in the manner of the paper's figures 2 and 3.

A row a scale, the finest on top. On the left the bottom-up network runs down, on the right the top-down network runs
up, from the pyramid's images through entries and merges. A box is as high as its map and as wide as its filters are
many, both by their square roots, so that 7 pixels beside 224 and 16 filters beside 2048 can still be seen.

All lengths are in inches; matplotlib is imported when a picture is drawn, since it is an extra.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from td_compiler.errors import ConversionError
from td_compiler.files import write_together
from td_compiler.graph.notes import plan
from td_compiler.graph.units import scale_key
from td_compiler.layers.folding import CombinedConv2d
from td_compiler.layers.pyramid import factor_pair
from td_compiler.network.base import TopDownNet
from td_compiler.network.segments import Segment
from td_compiler.report.report import Cost, StageReport
from td_compiler.report.tables import short_count, total

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_networks", "plot_networks"]

_HIGHEST, _WIDEST, _LEAST = 1.0, 1.3, 0.09  # boxes
_ROW, _GAP = 0.48, 0.4  # a row is at least as high as three lines of text; an arrow and its label stand in a gap
_HEADER, _FOOTER = 1.5, 1.4  # titles and what stands above the finest row; the figure of the merge
_TEXT, _LINE = 8.0, 0.15  # points; from one line to the next
_BU, _TD, _IMAGE, _ENTRY, _INK = "#d98c7a", "#7fb294", "#dcdcdc", "#cfe5d8", "#333333"

# Where columns stand, from left to right: their centres, and where labels begin.
_SCALE, _BU_STAGE, _TD_IMAGE, _TD_ENTRY, _TD_MERGE, _TD_STAGE = 0.15, 1.75, 4.3, 5.75, 6.85, 8.05
_BU_LABEL, _TD_LABEL = _BU_STAGE + _WIDEST / 2 + 0.1, _TD_STAGE + _WIDEST / 2 + 0.1
_RIGHT = _TD_LABEL + 0.95


@dataclass(frozen=True)
class _Row:
    """One scale and where it stands: its `middle` and its lower end, `floor`; `height` is that of its boxes."""

    stage: StageReport
    segment: Segment
    middle: float
    height: float
    floor: float

    @property
    def top(self) -> float:
        return self.middle + self.height / 2

    @property
    def bottom(self) -> float:
        return self.middle - self.height / 2

    def has(self, role: str) -> bool:
        """Whether there is an `entry` or a `merge` at this scale."""
        return any(plan(node).unit.startswith(f"{role}.") for node in self.segment.graph.nodes)


def plot_networks(network: TopDownNet, path: Path, title: str = "") -> None:
    """Draw a top-down network beside its source into a .svg or .png file, by the ending of `path`, which is replaced.

    Where it cannot be written, on a full disk for example, what was there stays. Arguments and errors are those of
    :func:`draw_networks`.
    """
    figure = draw_networks(network, title)
    import matplotlib

    # Text stays text, and nothing depends on the time: a picture that did not change is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "td-compiler"}):
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        kind = path.suffix[1:]
        write_together(
            {path: lambda target: figure.savefig(target, format=kind, dpi=150, metadata=metadata, facecolor="white")}
        )


def draw_networks(network: TopDownNet, title: str = "") -> Figure:
    """Draw a top-down network beside its source.

    Args:
        network: the top-down network; its report has all that is drawn of the source.
        title: what stands above the picture; by default the source's class.

    Raises:
        ConversionError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConversionError("a picture needs matplotlib: pip install 'td-compiler[bench]'.") from error
    rows, height = _rows(network)
    figure = Figure(figsize=(_RIGHT, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, _RIGHT)
    axes.set_ylim(0, height)
    axes.axis("off")
    _Picture(axes, network, rows, height).draw(title or network.report.source)
    return figure


def _rows(network: TopDownNet) -> tuple[list[_Row], float]:
    """The rows, finest first, and the picture's height."""
    stages = network.report.stages[:-1]
    segments = {segment.name: segment for segment in network.segments}
    highest = max(row.top_down.size[0] for row in stages)
    boxes = [max(_HIGHEST * (row.top_down.size[0] / highest) ** 0.5, _LEAST) for row in stages]
    rooms = [max(box, _ROW) for box in boxes]
    edge = _FOOTER + sum(rooms) + _GAP * (len(rooms) - 1)
    rows, height = [], edge + _HEADER
    for stage, box, room in zip(stages, boxes, rooms, strict=True):
        rows.append(_Row(stage, segments[stage.name], edge - room / 2, box, edge - room))
        edge -= room + _GAP
    return rows, height


class _Picture:
    def __init__(self, axes: Axes, network: TopDownNet, rows: list[_Row], height: float) -> None:
        self.axes, self.network, self.rows, self.height = axes, network, rows, height
        costs = [cost for row in rows for cost in (row.stage.bottom_up, row.stage.top_down) if cost is not None]
        self.most = max(cost.width for cost in costs)

    def draw(self, title: str) -> None:
        channels, height, width = self.network.report.input_size
        self.text(_RIGHT / 2, self.height - 0.2, f"{title}, images of {channels}x{height}x{width}", size=11)
        for row in self.rows:
            self.lines(_SCALE, row.middle, [f"1/{scale_key(factor_pair(row.stage.scale))}", _size(row.stage.top_down)])
        self.bottom_up()
        self.top_down()
        self.merge_figure(_TD_IMAGE - 0.4, _FOOTER - 0.75)

    def bottom_up(self) -> None:
        self.title(_BU_STAGE, "bottom-up (BU)", 0)
        rows = [row for row in self.rows if row.stage.bottom_up is not None]
        first = self.rows[0]
        if first is rows[0]:
            start = first.top + 0.3
            self.box(_BU_STAGE, start + 0.1, 0.6, 0.2, _IMAGE, "image")
        else:
            start = first.bottom
            self.image(_BU_STAGE, first)
            self.lines(_BU_LABEL, first.middle, ["image"])
        scale = (1, 1)
        for row in rows:
            cost = row.stage.bottom_up
            assert cost is not None
            self.arrow((_BU_STAGE, start), (_BU_STAGE, row.top))
            if factor_pair(cost.scale) != scale:
                self.text(_BU_STAGE + 0.08, row.top + 0.12, f"/{_times(factor_pair(cost.scale), scale)}", align="left")
            self.stage(_BU_STAGE, row, cost, _BU)
            size = [] if cost.size == row.stage.top_down.size else [_size(cost)]
            self.lines(_BU_LABEL, row.middle, [*_describe(cost, bottom_up=True), *size])
            start, scale = row.bottom, factor_pair(cost.scale)
        lowest = rows[-1].floor - 0.3
        self.arrow((_BU_STAGE, start), (_BU_STAGE, lowest))
        self.box(_BU_STAGE, lowest - 0.15, _WIDEST, 0.3, _BU, self.head())

    def top_down(self) -> None:
        self.title((_TD_IMAGE + _TD_STAGE) / 2, "top-down (TD)", 1)
        finest = self.rows[0]
        for x, name in ((_TD_IMAGE, "pyramid"), (_TD_ENTRY, "entry"), (_TD_MERGE, "merge")):
            self.text(x, finest.top + 0.12, name)
        coarser: _Row | None = None
        for row in reversed(self.rows):
            cost = row.stage.top_down
            right = self.image(_TD_IMAGE, row)
            if row.has("entry"):
                entry = self.width(_entry_width(self.network, row.segment))
                self.arrow((right, row.middle), (_TD_ENTRY - entry / 2, row.middle))
                self.box(_TD_ENTRY, row.middle, entry, row.height, _ENTRY)
                right = _TD_ENTRY + entry / 2
            if coarser is not None:
                self.arrow((right, row.middle), (_TD_MERGE - 0.1, row.middle))
                self.join(_TD_MERGE, row.middle, "+" if self.how() == "add" else "m")
                self.grow(coarser, row)
                right = _TD_MERGE + 0.1
            self.arrow((right, row.middle), (_TD_STAGE - self.width(cost.width) / 2, row.middle))
            self.stage(_TD_STAGE, row, cost, _TD)
            self.lines(_TD_LABEL, row.middle, _describe(cost, bottom_up=False))
            coarser = row
        self.arrow((_TD_STAGE, finest.top), (_TD_STAGE, finest.top + 0.3))
        self.box(_TD_STAGE, finest.top + 0.45, _WIDEST, 0.3, _TD, self.head())

    def grow(self, coarser: _Row, row: _Row) -> None:
        """The way of a map from its stage up into the next finer scale's merge."""
        between = row.floor - _GAP / 2
        self.axes.plot([_TD_STAGE, _TD_STAGE, _TD_MERGE], [coarser.top, between, between], color=_INK, lw=0.9)
        self.arrow((_TD_MERGE, between), (_TD_MERGE, row.middle - 0.1))
        growth = _times(factor_pair(coarser.stage.scale), factor_pair(row.stage.scale))
        self.text((_TD_MERGE + _TD_STAGE) / 2, between + 0.09, f"x{growth}")

    def how(self) -> str:
        """The merge, told by the operations of the finest stage."""
        nodes = [n for n in self.rows[0].segment.graph.nodes if plan(n).unit.startswith("merge.")]
        targets = {node.target for node in nodes}
        layers = {type(self.network.get_submodule(str(n.target))) for n in nodes if n.op == "call_module"}
        adds, stacks = operator.add in targets, torch.cat in targets
        if CombinedConv2d in layers or (adds and stacks):
            return "combined"
        return "add" if adds else "concat"

    def merge_figure(self, x: float, y: float) -> None:
        """What a merge is, as in the paper's figure 3: x the grown map, e the entry."""
        how = self.how()
        formula = {"add": "x + e", "concat": "conv 3x3 of [x, e]", "combined": "conv 3x3 of [x + e, e]"}[how]
        self.text(x, y + 0.35, f"{'+' if how == 'add' else 'm'}: merge ({how}), {formula}", align="left")
        self.text(x, y, "x", align="left")
        self.text(x, y - 0.4, "e", align="left")
        right = x + 0.15
        if how != "concat":
            self.arrow((right, y), (x + 0.8, y))
            self.axes.plot([right, x + 0.9], [y - 0.4, y - 0.4], color=_INK, lw=0.9)
            self.arrow((x + 0.9, y - 0.4), (x + 0.9, y - 0.1))
            self.join(x + 0.9, y, "+")
            right = x + 1.0
        if how != "add":
            self.arrow((right, y), (x + 1.7, y))
            self.axes.plot([x + (0.15 if how == "concat" else 0.9), x + 1.85], [y - 0.4, y - 0.4], color=_INK, lw=0.9)
            self.arrow((x + 1.85, y - 0.4), (x + 1.85, y - 0.1))
            self.box(x + 1.85, y, 0.3, 0.2, "white", "[ , ]")
            self.arrow((x + 2.0, y), (x + 2.4, y))
            self.box(x + 2.75, y, 0.7, 0.2, "white", "conv 3x3")
            right = x + 3.1
        self.arrow((right, y), (right + 0.4, y))

    def title(self, x: float, name: str, which: int) -> None:
        parameters, macs = (short_count(total(self.network.report, field)[which]) for field in ("parameters", "macs"))
        self.text(x, self.height - 0.48, name, size=10)
        self.text(x, self.height - 0.66, f"{parameters} parameters, {macs} MACs")

    def head(self) -> str:
        return f"head: {self.network.report.stages[-1].top_down.width} classes"

    def width(self, filters: int) -> float:
        return max(_WIDEST * (filters / self.most) ** 0.5, _LEAST)

    def stage(self, x: float, row: _Row, cost: Cost, colour: str) -> None:
        self.box(x, row.middle, self.width(cost.width), row.height, colour)

    def image(self, x: float, row: _Row) -> float:
        """The image at a row's scale; returns its right edge."""
        height, width = row.stage.top_down.size
        widest = self.rows[0].stage.top_down.size[1] / self.rows[0].stage.top_down.size[0] * self.rows[0].height
        wide = row.height * width / height * min(1, _WIDEST / widest)
        self.box(x, row.middle, wide, row.height, _IMAGE)
        return x + wide / 2

    def box(self, x: float, y: float, width: float, height: float, colour: str, text: str = "") -> None:
        from matplotlib.patches import Rectangle

        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(Rectangle(corner, width, height, facecolor=colour, edgecolor=_INK, lw=0.7))
        if text:
            self.text(x, y, text)

    def join(self, x: float, y: float, sign: str) -> None:
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), 0.1, facecolor="white", edgecolor=_INK, lw=0.9, zorder=3))
        self.text(x, y, sign)

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        style = {"arrowstyle": "-|>", "lw": 0.9, "color": _INK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
        self.axes.annotate("", xy=end, xytext=start, arrowprops=style)

    def lines(self, x: float, middle: float, lines: list[str]) -> None:
        for i, line in enumerate(lines):
            self.text(x, middle + _LINE * ((len(lines) - 1) / 2 - i), line, align="left")

    def text(self, x: float, y: float, text: str, size: float = _TEXT, align: str = "center") -> None:
        self.axes.text(x, y, text, ha=align, va="center_baseline", fontsize=size, color=_INK, zorder=4)


def _size(cost: Cost) -> str:
    return f"{cost.size[0]}x{cost.size[1]}"


def _times(large: tuple[int, int], small: tuple[int, int]) -> str:
    return scale_key((large[0] // small[0], large[1] // small[1]))


def _describe(cost: Cost, bottom_up: bool) -> list[str]:
    units = _count(cost.units, "unit") if cost.units else "stem" if bottom_up else "merge alone"
    return [_count(cost.width, "filter"), units]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number > 1)


def _entry_width(network: TopDownNet, segment: Segment) -> int:
    """The filters of the entry's last convolution."""
    entry = [n for n in segment.graph.nodes if n.op == "call_module" and plan(n).unit.startswith("entry.")]
    weights = [getattr(network.get_submodule(str(node.target)), "weight", None) for node in entry]
    return [len(weight) for weight in weights if weight is not None and weight.dim() == 4][-1]
