"""A picture of both networks side by side (`tdc inspect --plot`), in the manner of the paper's figures 2 and 3.

A row a scale, the finest on top. On the left the bottom-up network runs down, on the right the top-down network runs
up, from the pyramid's images through entries and merges; what a map goes through before its merge stands between the
rows. A box is as high as its map and as wide as its filters are many, both by their square roots, so that 7 pixels
beside 224 and 16 filters beside 2048 can still be seen; a line in it parts one unit from the next.

All lengths are in inches; matplotlib is imported when a picture is drawn, since it is an extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from td_compiler.errors import ConversionError
from td_compiler.files import write_together
from td_compiler.graph.units import scale_key
from td_compiler.layers.pyramid import factor_pair
from td_compiler.network.base import TopDownNet
from td_compiler.report.canvas import LINE, Canvas
from td_compiler.report.order import Step, before_merge, entry_width, head_steps, how_merged
from td_compiler.report.report import Cost, StageReport
from td_compiler.report.style import COLOURS, STYLE, tint
from td_compiler.report.tables import short_count, total

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_networks", "plot_networks"]

_HIGHEST, _WIDEST, _LEAST = 1.1, 1.3, 0.09  # boxes
_ROW, _GAP = 0.48, 0.62  # a row is at least as high as three lines of text; a step and an arrow stand in a gap
_STEP, _HEAD = (1.15, 0.24), 1.3  # a step before a merge, a head's width
_TITLES, _MERGE_FIGURE = 1.05, 1.3  # above the heads, below the rows
_BU, _TD = tint(COLOURS["bu"], 0.6), tint(COLOURS["mirror"], 0.6)
_ENTRY, _IMAGE = tint(COLOURS["mirror"], 0.25), "#dedede"

# Where columns stand, from left to right: their centres, and where labels begin.
_SCALE, _BU_STAGE, _TD_IMAGE, _TD_ENTRY, _TD_MERGE, _TD_STAGE = 0.15, 1.75, 4.35, 5.8, 6.8, 8.6
_BU_LABEL, _TD_LABEL = _BU_STAGE + _WIDEST / 2 + 0.1, _TD_STAGE + _WIDEST / 2 + 0.1
_RIGHT = _TD_LABEL + 0.85


@dataclass(frozen=True)
class _Row:
    """One scale and where it stands: its `middle` and its lower end, `floor`; `height` is that of its boxes.

    `before` is what the map so far goes through before its merge, `entry` the entry's filters, 0 where there is none.
    """

    stage: StageReport
    before: Sequence[Step]
    entry: int
    middle: float
    height: float
    floor: float

    @property
    def top(self) -> float:
        return self.middle + self.height / 2

    @property
    def bottom(self) -> float:
        return self.middle - self.height / 2

    @property
    def after(self) -> int:
        """The units that run after the merge."""
        return self.stage.top_down.units - sum(step.source for step in self.before)


def plot_networks(network: TopDownNet, path: Path, title: str = "", image: Tensor | None = None) -> None:
    """Draw a top-down network beside its source into a .svg or .png file, by the ending of `path`, which is replaced.

    Where it cannot be written, on a full disk for example, what was there stays. Arguments and errors are those of
    :func:`draw_networks`.
    """
    figure = draw_networks(network, title, image)
    import matplotlib

    # Text stays text, and nothing depends on the time: a picture that did not change is the same file.
    with matplotlib.rc_context(dict(STYLE)):
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        kind = path.suffix[1:]
        write_together(
            {path: lambda target: figure.savefig(target, format=kind, dpi=200, metadata=metadata, facecolor="white")}
        )


def draw_networks(network: TopDownNet, title: str = "", image: Tensor | None = None) -> Figure:
    """Draw a top-down network beside its source.

    Args:
        network: the top-down network; its report has all that is drawn of the source.
        title: what stands above the picture; by default the source's class.
        image: (C, H, W) in [0, 1] with one channel or three, at the size at which the network was read: its pyramid
            stands where the network reads it.

    Raises:
        ConversionError: if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConversionError("a picture needs matplotlib: pip install 'td-compiler[plot]'.") from error
    heads = _heads(network)
    header = _TITLES + max(_head_height(heads[1]) + 0.3, 0.6)
    footer = max(_MERGE_FIGURE, _head_height(heads[0]) + 0.5)
    rows, height = _rows(network, header, footer)
    levels = None if image is None else network.pyramid(image[None])
    with matplotlib.rc_context(dict(STYLE)):
        figure = Figure(figsize=(_RIGHT, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, _RIGHT)
        axes.set_ylim(0, height)
        axes.axis("off")
        _Picture(axes, network, rows, height, footer, levels).draw(title or network.report.source, *heads)
    return figure


def _heads(network: TopDownNet) -> tuple[list[str], list[str]]:
    """What stands in the heads' boxes, the bottom-up and the top-down network's, in the order in which it runs."""
    steps = head_steps(network)
    options = network.report.options
    pooled = options is not None and options.head == "pooled" and steps[:1] == [Step("pool")]
    classes = f"{network.report.stages[-1].top_down.width} classes"
    last = steps[-1].what if steps else "map"
    ends = f"pool: {classes}" if last == "pool" else f"{last}, {classes}"
    top_down = [*map(str, steps[:-1]), ends]
    return (top_down[1:] if pooled else top_down), (["pool first", *top_down[1:]] if pooled else top_down)


def _head_height(lines: Sequence[str]) -> float:
    return LINE * len(lines) + 0.13


def _rows(network: TopDownNet, header: float, footer: float) -> tuple[list[_Row], float]:
    """The rows, finest first, and the picture's height."""
    stages = network.report.stages[:-1]
    segments = {segment.name: segment for segment in network.segments}
    highest = max(row.top_down.size[0] for row in stages)
    boxes = [max(_HIGHEST * (row.top_down.size[0] / highest) ** 0.5, _LEAST) for row in stages]
    rooms = [max(box, _ROW) for box in boxes]
    edge = footer + sum(rooms) + _GAP * (len(rooms) - 1)
    rows, height = [], edge + header
    for stage, box, room in zip(stages, boxes, rooms, strict=True):
        segment = segments[stage.name]
        before, entry = before_merge(network, segment), entry_width(network, segment)
        rows.append(_Row(stage, before, entry, edge - room / 2, box, edge - room))
        edge -= room + _GAP
    return rows, height


class _Picture(Canvas):
    def __init__(
        self,
        axes: Axes,
        network: TopDownNet,
        rows: list[_Row],
        height: float,
        footer: float,
        levels: Sequence[Tensor] | None,
    ) -> None:
        super().__init__(axes)
        self.network, self.rows, self.height, self.footer = network, rows, height, footer
        costs = [cost for row in rows for cost in (row.stage.bottom_up, row.stage.top_down) if cost is not None]
        self.most = max(cost.width for cost in costs)
        self.levels = levels
        self.how = how_merged(network, next(each for each in network.segments if each.name == rows[0].stage.name))

    def draw(self, title: str, bottom_up: Sequence[str], top_down: Sequence[str]) -> None:
        channels, height, width = self.network.report.input_size
        self.text(_RIGHT / 2, self.height - 0.22, f"{title}, images of {channels}x{height}x{width}", size=11)
        for row in self.rows:
            self.lines(_SCALE, row.middle, [f"1/{scale_key(factor_pair(row.stage.scale))}", _size(row.stage.top_down)])
        self.bottom_up(bottom_up)
        self.top_down(top_down)
        self.merge(self.how, _TD_IMAGE - 0.4, self.footer - 0.72)

    def bottom_up(self, head: Sequence[str]) -> None:
        self.title(_BU_STAGE, "bottom-up (BU)", 0)
        rows = [row for row in self.rows if row.stage.bottom_up is not None]
        first = self.rows[0]
        if first is rows[0]:
            start = first.top + 0.36
            self.box(_BU_STAGE, start + 0.12, 0.7, 0.24, _IMAGE, "image")
        else:
            start = first.bottom
            self.image(_BU_STAGE, 0)
            self.lines(_BU_LABEL, first.middle, ["image"])
        scale = (1, 1)
        for row in rows:
            cost = row.stage.bottom_up
            assert cost is not None
            self.arrow((_BU_STAGE, start), (_BU_STAGE, row.top))
            if factor_pair(cost.scale) != scale:
                between = (start + row.top) / 2
                self.text(_BU_STAGE + 0.08, between, f"/{_times(factor_pair(cost.scale), scale)}", align="left")
            self.box(_BU_STAGE, row.middle, self.width(cost.width), row.height, _BU, units=cost.units, down=True)
            size = [] if cost.size == row.stage.top_down.size else [_size(cost)]
            units = _count(cost.units, "unit") if cost.units else "stem" if row is rows[0] else "no unit"
            self.lines(_BU_LABEL, row.middle, [_count(cost.width, "filter"), units, *size])
            start, scale = row.bottom, factor_pair(cost.scale)
        lowest = rows[-1].floor - 0.3
        self.arrow((_BU_STAGE, start), (_BU_STAGE, lowest))
        self.head(_BU_STAGE, lowest - _head_height(head) / 2, head, _BU)

    def top_down(self, head: Sequence[str]) -> None:
        self.title((_TD_IMAGE + _TD_STAGE) / 2, "top-down (TD)", 1)
        finest = self.rows[0]
        for x, name in ((_TD_IMAGE, "pyramid"), (_TD_ENTRY, "entries"), (_TD_MERGE, "merges")):
            self.text(x, finest.top + 0.32, name, weight="bold")
        coarser: _Row | None = None
        for number, row in reversed(list(enumerate(self.rows))):
            right = self.image(_TD_IMAGE, number)
            if row.entry:
                entry = self.width(row.entry)
                self.arrow((right, row.middle), (_TD_ENTRY - entry / 2, row.middle))
                self.box(_TD_ENTRY, row.middle, entry, row.height, _ENTRY)
                self.text(_TD_ENTRY, row.top + 0.1, str(row.entry), size=7)
                right = _TD_ENTRY + entry / 2
            if coarser is not None:
                self.arrow((right, row.middle), (_TD_MERGE - 0.1, row.middle))
                self.join(_TD_MERGE, row.middle, "+" if self.how == "add" else "m")
                self.grow(coarser, row)
                right = _TD_MERGE + 0.1
            width = self.width(row.stage.top_down.width)
            self.arrow((right, row.middle), (_TD_STAGE - width / 2, row.middle))
            self.box(_TD_STAGE, row.middle, width, row.height, _TD, units=row.after)
            self.lines(_TD_LABEL, row.middle, [_count(row.stage.top_down.width, "filter"), _then(row, coarser)])
            coarser = row
        self.arrow((_TD_STAGE, finest.top), (_TD_STAGE, finest.top + 0.3))
        self.head(_TD_STAGE, finest.top + 0.3 + _head_height(head) / 2, list(reversed(head)), _TD)

    def grow(self, coarser: _Row, row: _Row) -> None:
        """The way of a map from its stage up into the next finer scale's merge."""
        between = row.floor - _GAP / 2
        width, height = _STEP
        middle = (_TD_MERGE + _TD_STAGE) / 2
        if row.before:
            text = str(row.before[0]) if len(row.before) == 1 else ", ".join(step.what for step in row.before)
            colour = _TD if any(step.source for step in row.before) else _ENTRY
            self.line([_TD_STAGE, _TD_STAGE, middle + width / 2], [coarser.top, between, between])
            self.box(middle, between, width, height, colour, text)
            self.line([middle - width / 2, _TD_MERGE], [between, between])
        else:
            self.line([_TD_STAGE, _TD_STAGE, _TD_MERGE], [coarser.top, between, between])
        self.arrow((_TD_MERGE, between), (_TD_MERGE, row.middle - 0.1))
        growth = _times(factor_pair(coarser.stage.scale), factor_pair(row.stage.scale))
        self.text(_TD_MERGE - 0.08, between + 0.08, f"x{growth}", align="right")

    def title(self, x: float, name: str, which: int) -> None:
        parameters, macs = (short_count(total(self.network.report, field)[which]) for field in ("parameters", "macs"))
        self.text(x, self.height - 0.56, name, size=10, weight="bold")
        self.text(x, self.height - 0.75, f"{parameters} parameters, {macs} MACs")

    def head(self, x: float, y: float, lines: Sequence[str], colour: str) -> None:
        """The head, its steps from top to bottom."""
        self.box(x, y, _HEAD, _head_height(lines), colour)
        self.lines(x, y, lines, align="center")

    def width(self, filters: int) -> float:
        return max(_WIDEST * (filters / self.most) ** 0.5, _LEAST)

    def image(self, x: float, number: int) -> float:
        """The image at a row's scale; returns its right edge."""
        row = self.rows[number]
        height, width = row.stage.top_down.size
        widest = self.rows[0].stage.top_down.size[1] / self.rows[0].stage.top_down.size[0] * self.rows[0].height
        wide = row.height * width / height * min(1, _WIDEST / widest)
        self.box(x, row.middle, wide, row.height, _IMAGE)
        if self.levels is not None:
            pixels = self.levels[number][0].detach().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
            extent = (x - wide / 2, x + wide / 2, row.bottom, row.top)
            self.axes.imshow(pixels, extent=extent, aspect="auto", interpolation="nearest", zorder=2)
            self.axes.set_xlim(0, _RIGHT)
            self.axes.set_ylim(0, self.height)
        return x + wide / 2


def _then(row: _Row, coarser: _Row | None) -> str:
    """What follows a row's merge, or the first image."""
    if row.after > 0:
        return _count(row.after, "unit")
    return "merge alone" if coarser is not None else "entry alone"


def _size(cost: Cost) -> str:
    return f"{cost.size[0]}x{cost.size[1]}"


def _times(large: tuple[int, int], small: tuple[int, int]) -> str:
    return scale_key((large[0] // small[0], large[1] // small[1]))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number > 1)
