"""How every figure of the experiments looks: one colour, marker and dash for each arrangement, one size of text.

Colours and text are those of all figures (`td_compiler/report/style.py`). Figures have no ground and a single ink, so
that the report can show them on light and on dark paper.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from td_compiler.files import write_together
from td_compiler.report.style import COLOURS, INK, NAMES, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "DASHES", "INK", "MARKERS", "NAMES", "OTHERS", "STYLE", "figure", "line", "save", "svg"]

MARKERS: Mapping[str, str] = {"bu": "o", "mirror": "s", "uniform": "^", "reversed": "D"}
DASHES: Mapping[str, str] = {"bu": "-", "mirror": "--", "uniform": "-.", "reversed": ":"}

OTHERS = ("#0072b2", "#e69f00", "#999999", "#f0e442")  # for what is no arrangement: a blur, a threshold, ...


def figure(width: float = 6.5, height: float = 2.6) -> Figure:
    """An empty figure, lengths in inches; labels find their room by themselves. 6.5 is the width of a page of text."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def line(arrangement: str) -> dict[str, str]:
    """What `axes.plot` is given for the curve of an arrangement: colour, marker, dash and its name for the legend."""
    return {
        "color": COLOURS[arrangement],
        "marker": MARKERS[arrangement],
        "linestyle": DASHES[arrangement],
        "label": NAMES[arrangement],
    }


def svg(draw: Callable[[], Figure]) -> str:
    """The figure that `draw` makes as SVG source, drawn in the common style; its width fits a page of text."""
    buffer = io.BytesIO()
    _write(draw, buffer, "svg")
    return buffer.getvalue().decode()


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Draw a figure in the common style into a .svg, .png or .pdf file, by the ending of `path`, on white.

    Raises:
        OSError: if the file cannot be written; an existing one is unchanged then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_together({path: lambda target: _write(draw, target, path.suffix[1:], facecolor="white")})


def _write(draw: Callable[[], Figure], target: Path | io.BytesIO, kind: str, **options: Any) -> None:
    import matplotlib

    with matplotlib.rc_context(dict(STYLE)):
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {}
        draw().savefig(target, format=kind, dpi=160, metadata=metadata, **options)
