"""What pictures of networks are drawn with: boxes, arrows, lines and text, in inches and points.

matplotlib is imported when a picture is drawn, since it is an extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from td_compiler.report.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LINE", "TEXT", "Canvas"]

TEXT, LINE = 8.0, 0.15  # points; from one line to the next


class Canvas:
    """Draws on axes whose unit is an inch."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        text: str = "",
        *,
        units: int = 0,
        down: bool = False,
    ) -> None:
        """A box around its middle; lines part its units, across it or `down` it, where they are not too close."""
        from matplotlib.patches import FancyBboxPatch

        left, low, corner = x - width / 2, y - height / 2, min(0.04, width / 3, height / 3)
        shape = f"round,pad=0,rounding_size={corner}"
        self.axes.add_patch(FancyBboxPatch((left, low), width, height, shape, facecolor=colour, edgecolor=INK, lw=0.7))
        if units > 1 and (height if down else width) / units >= 0.05:
            for share in (number / units for number in range(1, units)):
                across = ([left, left + width], [low + share * height] * 2)
                along = ([left + share * width] * 2, [low, low + height])
                self.axes.plot(*(across if down else along), color="white", lw=0.8, solid_capstyle="butt")
        if text:
            self.text(x, y, text)

    def join(self, x: float, y: float, sign: str) -> None:
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), 0.1, facecolor="white", edgecolor=INK, lw=0.9, zorder=3))
        self.text(x, y, sign)

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        style: dict[str, Any] = {
            "arrowstyle": "-|>",
            "lw": 0.9,
            "color": INK,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 8,
        }
        self.axes.annotate("", xy=end, xytext=start, arrowprops=style)

    def line(self, across: list[float], up: list[float]) -> None:
        self.axes.plot(across, up, color=INK, lw=0.9)

    def lines(self, x: float, middle: float, lines: Sequence[str], align: str = "left") -> None:
        for i, line in enumerate(lines):
            self.text(x, middle + LINE * ((len(lines) - 1) / 2 - i), line, align=align)

    def text(
        self, x: float, y: float, text: str, size: float = TEXT, align: str = "center", weight: str = "normal"
    ) -> None:
        look: dict[str, Any] = {
            "ha": align,
            "va": "center_baseline",
            "fontsize": size,
            "fontweight": weight,
            "color": INK,
        }
        self.axes.text(x, y, text, zorder=4, **look)

    def merge(self, how: str, x: float, y: float) -> None:
        """What the merge `how` is, as in the paper's figure 3: x the grown map, e the entry; x begins at (x, y)."""
        formula = {"add": "x + e", "concat": "conv 3x3 of [x, e]", "combined": "conv 3x3 of [x + e, e]"}[how]
        self.text(x, y + 0.35, f"{'+' if how == 'add' else 'm'}: merge ({how}), {formula}", align="left")
        self.text(x, y, "x", align="left")
        self.text(x, y - 0.4, "e", align="left")
        right = x + 0.15
        if how != "concat":
            self.arrow((right, y), (x + 0.8, y))
            self.line([right, x + 0.9], [y - 0.4, y - 0.4])
            self.arrow((x + 0.9, y - 0.4), (x + 0.9, y - 0.1))
            self.join(x + 0.9, y, "+")
            right = x + 1.0
        if how != "add":
            self.arrow((right, y), (x + 1.7, y))
            self.line([x + (0.15 if how == "concat" else 0.9), x + 1.85], [y - 0.4, y - 0.4])
            self.arrow((x + 1.85, y - 0.4), (x + 1.85, y - 0.12))
            self.box(x + 1.85, y, 0.3, 0.24, "white", "[ , ]")
            self.arrow((x + 2.0, y), (x + 2.4, y))
            self.box(x + 2.78, y, 0.76, 0.24, "white", "conv 3x3")
            right = x + 3.16
        self.arrow((right, y), (right + 0.4, y))
