"""Draws the site's own figures: the image pyramid of a photograph, and how a conversion runs.

python docs/figures.py --photo PHOTO.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from td_compiler.layers.pyramid import downsample_gaussian
from td_compiler.report.style import COLOURS, INK, tint

IMAGES = Path(__file__).parent / "images"
# As in `tdc inspect --plot`.
BU, TD, ENTRY, IMAGE = tint(COLOURS["bu"], 0.6), tint(COLOURS["mirror"], 0.6), tint(COLOURS["mirror"], 0.25), "#dedede"
SCALES = (1, 2, 4, 8)
matplotlib.rcParams.update(
    {"font.size": 9, "font.family": "sans-serif", "text.color": INK, "svg.hashsalt": "td-compiler"}
)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    """An arrow from one point to another."""
    look = {"arrowstyle": "-|>", "mutation_scale": 9, "color": INK, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, **(look | style)))


def box(axes: Any, x: float, y: float, width: float, height: float, colour: str, text: str = "") -> None:
    """A box around its middle, with a text in it."""
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.04")
    shape.set(facecolor=colour, edgecolor=INK, linewidth=0.7)
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", color=INK)


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure in inches, with the origin at its lower left."""
    figure, axes = pyplot.subplots(figsize=(width, height))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def draw_idea(photo: Path) -> None:
    """A bottom-up network down one side, its top-down network up the other, from a photograph's real pyramid."""
    square = Image.open(photo).convert("RGB")
    side = min(square.size)
    left, top = (square.width - side) // 2, (square.height - side) // 2
    square = square.crop((left, top, left + side, top + side)).resize((256, 256))
    images = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255

    figure, axes = canvas(9.6, 5.0)
    middles = (3.75, 2.3, 1.3, 0.62)  # of the rows, finest first
    heights = (1.5, 0.85, 0.5, 0.3)  # of maps and images
    widths = (0.28, 0.42, 0.6, 0.85)  # of stages: more filters where maps are smaller
    bottom_up, picture, entry, merge, top_down = 1.75, 4.3, 5.75, 6.75, 7.65
    axes.text(bottom_up, 4.78, "bottom-up network", ha="center", weight="bold")
    axes.text((picture + top_down) / 2, 4.78, "its top-down network", ha="center", weight="bold")
    for number, (scale, y, height, width) in enumerate(zip(SCALES, middles, heights, widths, strict=True)):
        level = downsample_gaussian(images, scale)[0].permute(1, 2, 0).clamp(0, 1).numpy()
        sharp = {"interpolation": "nearest"} if scale > 1 else {"interpolation": "antialiased"}
        axes.imshow(level, extent=(picture - height / 2, picture + height / 2, y - height / 2, y + height / 2), **sharp)
        axes.text(2.95, y, "the image" if scale == 1 else f"1/{scale}", ha="center", va="center")
        box(axes, bottom_up, y, width, height, BU)
        box(axes, top_down, y, width, height, TD)
        last = number == len(SCALES) - 1
        if last:
            arrow(axes, (picture + height / 2, y), (top_down - width / 2, y))
        else:
            box(axes, entry, y, 0.22, height, ENTRY)
            arrow(axes, (picture + height / 2, y), (entry - 0.11, y))
            arrow(axes, (entry + 0.11, y), (merge - 0.14, y))
            axes.add_patch(pyplot.Circle((merge, y), 0.14, facecolor="white", edgecolor=INK, linewidth=0.7))
            axes.text(merge, y, "m", ha="center", va="center", style="italic")
            arrow(axes, (merge + 0.14, y), (top_down - width / 2, y))
            below, reach = middles[number + 1], heights[number + 1] / 2
            arrow(axes, (bottom_up, y - height / 2), (bottom_up, below + reach))
            axes.text(bottom_up + 0.1, (y - height / 2 + below + reach) / 2, "/2", va="center", fontsize=8)
            turn = (y - height / 2 + below + reach) / 2
            axes.plot([top_down, top_down, merge], [below + reach, turn, turn], color=INK, linewidth=1.0)
            arrow(axes, (merge, turn), (merge, y - 0.14))
            axes.text(top_down + 0.1, turn, "x2", va="center", fontsize=8)
    y = middles[0]
    finest = Image.fromarray((images[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    axes.imshow(finest, extent=(0.02, 1.02, y - 0.5, y + 0.5))
    arrow(axes, (1.02, y), (bottom_up - widths[0] / 2, y))
    arrow(axes, (bottom_up, middles[-1] - heights[-1] / 2), (bottom_up, 0.2))
    axes.text(bottom_up, 0.08, "class scores", ha="center", va="center")
    arrow(axes, (top_down + widths[0] / 2, y), (8.35, y))
    axes.text(8.4, y, "class scores,\nor a class\nfor every pixel", ha="left", va="center")
    axes.text(picture, 0.08, "pyramid", ha="center", va="center")
    axes.text(entry, 0.08, "entries", ha="center", va="center")
    axes.text(merge, 0.08, "merges", ha="center", va="center")
    axes.text(top_down, 0.08, "stages", ha="center", va="center")
    axes.text(8.4, middles[-1], "runs first", ha="left", va="center")
    axes.set(xlim=(0, 9.6), ylim=(0, 5.0))
    figure.savefig(IMAGES / "idea.png", dpi=150, facecolor="white", pil_kwargs={"optimize": True})
    quantised = Image.open(IMAGES / "idea.png").convert("RGB").quantize(128)
    quantised.save(IMAGES / "idea.png", optimize=True)


def draw_architecture() -> None:
    """Read, turn, build: what a conversion makes of a network, and where the code is."""
    figure, axes = canvas(9.6, 3.5)
    columns = (1.0, 3.15, 5.3, 7.45)
    made = (
        "nn.Module",
        "fx.Graph,\nin units and stages",
        "the stages, turned:\na graph for each",
        "TopDownNet:\ntext and layers",
    )
    for x, text, colour in zip(columns, made, (BU, IMAGE, IMAGE, TD), strict=True):
        box(axes, x, 2.75, 1.55, 0.75, colour, text)
    steps = ("read", "turn", "build")
    where = (
        (
            "run on the meta device,\nfollow channels and sizes,\nfind units, stages, head",
            "capture/, passes/trace_*,\nfind_*, sum_*, adopt_*",
        ),
        (
            "reverse the stages, upsample,\ninsert entries and merges,\nset widths",
            "passes/reverse_*, insert_*,\narrange_*, set_*, rewrite_*",
        ),
        (
            "make layers, keep weights,\nchoose fast forms,\nwrite and execute the text",
            "passes/build_*, tie_*, assemble,\nlayers/, network/, emission/",
        ),
    )
    for number, (step, (what, files)) in enumerate(zip(steps, where, strict=True)):
        x = (columns[number] + columns[number + 1]) / 2
        arrow(axes, (columns[number] + 0.78, 2.75), (columns[number + 1] - 0.78, 2.75))
        axes.text(x, 3.2, step, ha="center", va="center", weight="bold")
        axes.text(x, 1.95, what, ha="center", va="center", fontsize=8)
        axes.text(x, 1.42, files, ha="center", va="center", fontsize=7.5, family="monospace", color="#555555")
    arrow(axes, (8.23, 2.75), (8.6, 2.75))
    axes.text(8.65, 2.75, "train, save,\nexport", va="center", fontsize=8)
    arrow(axes, (7.95, 2.37), (7.95, 1.85))
    axes.text(7.95, 1.52, "tdc convert: source\nand weights;\ntdc verify: checks", ha="center", va="center", fontsize=8)
    box(axes, 4.2, 0.55, 6.9, 0.5, ENTRY, "graph/operators.py: what each operator does to scale and width")
    for x in ((columns[i] + columns[i + 1]) / 2 for i in range(3)):
        arrow(axes, (x, 0.8), (x, 1.14))
    figure.savefig(IMAGES / "architecture.svg", metadata={"Date": None}, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True, help="of which the pyramid is made")
    draw_idea(parser.parse_args().photo)
    draw_architecture()


if __name__ == "__main__":
    main()
