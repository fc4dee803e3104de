"""The forms that the experiments' plots share: grouped bars with deviations, and one legend above all panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from td_compiler.benchmarks.show.style import COLOURS, INK, NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Bars", "bars", "legend"]

_WIDEST = 0.3  # of a bar, where a group is 1
_WHISKERS = {"ecolor": INK, "elinewidth": 0.8, "capsize": 2}


@dataclass(frozen=True)
class Bars:
    """One colour of a grouped bar plot.

    Attributes:
        heights: a bar in every group; None where there is none.
        deviations: half the length of the error bar on each, in the same unit; None or empty for none.
        look: how the bars are drawn: `color`, `label`, and whatever else `axes.bar` takes.
    """

    heights: Sequence[float | None]
    deviations: Sequence[float | None] = ()
    look: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, arrangement: str, heights: Sequence[float | None], deviations: Sequence[float | None] = (), label: str = ""
    ) -> Bars:
        """Bars in an arrangement's colour; hatched where `label` says that they are a variant of it."""
        look = {"color": COLOURS[arrangement], "label": label or NAMES[arrangement]}
        return cls(heights, deviations, {**look, "hatch": "////"} if label else look)


def bars(axes: Axes, groups: Sequence[str], series: Sequence[Bars], *, values: str = "") -> None:
    """Draw a group of bars side by side for each name in `groups`, one bar of every series in it.

    Args:
        axes: where to draw.
        groups: the groups' names, under the axis.
        series: the bars; each has as many heights as there are groups.
        values: how heights are written above the bars, such as `.1f`; not at all by default.
    """
    width = min(0.8 / len(series), _WIDEST)
    for place, each in enumerate(series):
        deviations = each.deviations or [None] * len(groups)
        shown = [
            (i, h, d or 0.0) for i, (h, d) in enumerate(zip(each.heights, deviations, strict=True)) if h is not None
        ]
        if not shown:
            continue
        numbers, heights, errors = zip(*shown, strict=True)
        centres = [number + (place + 0.5 - len(series) / 2) * width for number in numbers]
        whiskers: dict[str, Any] = {"yerr": errors, "error_kw": _WHISKERS} if any(errors) else {}
        drawn = axes.bar(centres, heights, width * 0.92, edgecolor="white", linewidth=0.3, **whiskers, **each.look)
        if values:
            axes.bar_label(drawn, fmt=f"{{:{values}}}", fontsize=7, padding=2)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")


def legend(figure: Figure, columns: int = 5) -> None:
    """One legend above all panels of a figure: every name once, in the order in which they were drawn."""
    known: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if known:
        count = min(columns, len(known))
        figure.legend(list(known.values()), list(known), loc="outside upper center", ncols=count)
