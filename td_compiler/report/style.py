"""How every figure looks: one colour for each arrangement, one ink, one size of text.

Colours are those of Okabe and Ito (2008), told apart under all common forms of colour blindness; as in the papers, the
bottom-up network is reddish and the top-down network green. matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["COLOURS", "INK", "NAMES", "STYLE", "tint"]

# By arrangement, in the order in which they are always shown.
COLOURS: Mapping[str, str] = {"bu": "#d55e00", "mirror": "#009e73", "uniform": "#56b4e9", "reversed": "#cc79a7"}
NAMES: Mapping[str, str] = {"bu": "BU", "mirror": "TD", "uniform": "TD uniform", "reversed": "TD reversed"}

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


def tint(colour: str, share: float) -> str:
    """A colour mixed with white, of which it is so large a share: `#009e73` at 0.5 is `#80cfb9`."""
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)
