"""How every figure of the experiments looks: one colour, marker and dash for each arrangement, one size of text.

Colours are those of Okabe and Ito (2008), told apart under all common forms of colour blindness; as in the papers, the
bottom-up network is reddish and the top-down network green. Figures have no ground and a single ink, so that the report
can show them on light and on dark paper.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from td_compiler.files import write_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "DASHES", "INK", "MARKERS", "NAMES", "OTHERS", "STYLE", "figure", "line", "save", "svg"]

# By arrangement, in the order in which they are always shown.
COLOURS: Mapping[str, str] = {"bu": "#d55e00", "mirror": "#009e73", "uniform": "#56b4e9", "reversed": "#cc79a7"}
NAMES: Mapping[str, str] = {"bu": "BU", "mirror": "TD", "uniform": "TD uniform", "reversed": "TD reversed"}
MARKERS: Mapping[str, str] = {"bu": "o", "mirror": "s", "uniform": "^", "reversed": "D"}
DASHES: Mapping[str, str] = {"bu": "-", "mirror": "--", "uniform": "-.", "reversed": ":"}

OTHERS = ("#0072b2", "#e69f00", "#999999", "#f0e442")  # for what is no arrangement: a blur, a threshold, ...
INK = "#333334"  # text, axes and ticks, and nothing else: the report puts the page's own colour in its place

STYLE: Mapping[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "grid.alpha": 0.2,
    "grid.color": INK,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "td-compiler",  # a figure that did not change is the same file
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}


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
