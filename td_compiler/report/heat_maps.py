"""Where networks look: Grad-CAM (Selvaraju et al. 2017) at every stage of a network, as a picture.

The places are those of :func:`td_compiler.network.taps.tapped`. matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler.errors import ConversionError
from td_compiler.files import write_together
from td_compiler.network.taps import tapped
from td_compiler.report.style import COLOURS, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Explained", "draw_heat_maps", "heat_maps", "plot_heat_maps", "to_unit"]

_CELL, _TITLE, _SIDE = 1.15, 0.3, 0.45  # inches: a picture, the lines above it, the network's name


@dataclass(frozen=True)
class Explained:
    """What one network says of one image.

    Attributes:
        scores: (K,), of all classes, as the network gives them.
        label: the class that is explained.
        maps: by place, in the order in which the network runs: what speaks for the class, (H, W) from 0 to 1, at the
            image's size; all 0 where nothing does.
    """

    scores: Tensor
    label: int
    maps: Mapping[str, Tensor]

    @property
    def probability(self) -> float:
        """Of the explained class."""
        return float(self.scores.softmax(0)[self.label])


def heat_maps(
    network: nn.Module,
    images: Tensor,
    labels: Sequence[int] | None = None,
    *,
    input_size: tuple[int, int, int] | None = None,
) -> list[Explained]:
    """Grad-CAM at the first stage's input, after every stage, and at the last map before the head pools it.

    Args:
        network: bottom-up or top-down, in evaluation mode; images (N, C, H, W) to class scores (N, K).
        images: as the network reads them.
        labels: the class to explain for each image; by default the one that the network finds.
        input_size: (C, H, W) at which a bottom-up network is read.

    Returns:
        One for each image.

    Raises:
        ConversionError: if the compiler finds no stages in the network, it gives no class scores, or it has no such
            class.
    """
    graph = tapped(network, input_size=input_size)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, inputs, output: seen.update({name: output})

    taps = graph.taps
    assert isinstance(taps, nn.ModuleDict)
    for name, tap in taps.items():
        tap.register_forward_hook(keep(name))
    with torch.enable_grad():
        scores = graph(images.detach().requires_grad_())  # a tap may be the image itself
    if scores.dim() != 2:
        raise ConversionError(f"the network gives {tuple(scores.shape)}: heat maps explain class scores (N, K).")
    chosen = scores.argmax(1) if labels is None else torch.tensor(list(labels), device=scores.device)
    if not 0 <= int(chosen.min()) <= int(chosen.max()) < scores.shape[1]:
        raise ConversionError(f"class {int(chosen.max())} is none of the network's {scores.shape[1]}, from 0.")
    total = scores.gather(1, chosen[:, None]).sum()
    gradients = torch.autograd.grad(total, list(seen.values()), materialize_grads=True)
    maps = {
        name: to_unit(F.interpolate(_weighted(seen[name], gradient), images.shape[-2:], mode="bilinear"))
        for name, gradient in zip(seen, gradients, strict=True)
    }
    return [
        Explained(scores[i].detach(), int(chosen[i]), {name: maps[name][i, 0] for name in taps})
        for i in range(len(images))
    ]


def _weighted(values: Tensor, gradient: Tensor) -> Tensor:
    """Channels (N, C, h, w), weighted by their gradients' means: (N, 1, h, w)."""
    return (values * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).detach()


def to_unit(maps: Tensor) -> Tensor:
    """Negative evidence cut off and the largest value of each map at 1 (SPEC 6.3b); a map without evidence stays 0.

    (N, 1, H, W) to the same.
    """
    positive = maps.clamp(min=0)
    largest = positive.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(largest > 0, positive / largest, positive)


def plot_heat_maps(
    images: Sequence[Tensor], titles: Sequence[str], explained: Mapping[str, Sequence[Explained]], path: Path
) -> None:
    """Draw heat maps into a .png, .svg or .pdf file, by the ending of `path`, which is replaced.

    Arguments and errors are those of :func:`draw_heat_maps`.

    Raises:
        OSError: if the file cannot be written; nothing has changed then.
    """
    figure = draw_heat_maps(images, titles, explained)
    import matplotlib

    with matplotlib.rc_context(dict(STYLE)):
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        kind = path.suffix[1:]
        write_together(
            {path: lambda target: figure.savefig(target, format=kind, dpi=160, metadata=metadata, facecolor="white")}
        )


def draw_heat_maps(
    images: Sequence[Tensor], titles: Sequence[str], explained: Mapping[str, Sequence[Explained]]
) -> Figure:
    """A row for each image and network: the image, then what the network looks at, in the order in which it runs.

    Args:
        images: as people see them, (C, H, W) in [0, 1] with one channel or three.
        titles: of the images.
        explained: by network, `BU` or `TD` as it is written beside the row, one for each image.

    Raises:
        ConversionError: if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConversionError("a picture needs matplotlib: pip install 'td-compiler[plot]'.") from error
    columns = 1 + max(len(each.maps) for row in explained.values() for each in row)
    rows = [(number, name) for number in range(len(images)) for name in explained]
    height, width = images[0].shape[-2:]
    tall, wide = _CELL * min(1, height / width), _CELL * min(1, width / height)
    with matplotlib.rc_context(dict(STYLE)):
        figure = Figure(figsize=(_SIDE + columns * (wide + 0.06), len(rows) * (tall + _TITLE) + 0.06))
        total_width, total_height = figure.get_size_inches()
        for place, (number, name) in enumerate(rows):
            bottom = 1 - (place + 1) * (tall + _TITLE) / total_height
            figure.text(
                _SIDE / 2 / total_width,
                bottom + tall / 2 / total_height,
                name,
                size=10,
                weight="bold",
                color=COLOURS["bu" if name == "BU" else "mirror"],
                ha="center",
                va="center",
            )
            picture = _pixels(images[number])
            found = explained[name][number]
            pictures = [(f"{_short(titles[number])}\n{_said(found)}", picture)]
            pictures += [(_tap_title(tap), _overlay(picture, heat)) for tap, heat in found.maps.items()]
            for column, (title, shown) in enumerate(pictures):
                left = (_SIDE + column * (wide + 0.06)) / total_width
                axes = figure.add_axes((left, bottom, wide / total_width, tall / total_height))
                _show(axes, shown, title)
    return figure


def _show(axes: Axes, picture: Tensor, title: str) -> None:
    axes.imshow(picture.numpy(), vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(title, fontsize=6.5, pad=2.5, linespacing=1.15)


def _pixels(image: Tensor) -> Tensor:
    """(H, W, 3) in [0, 1]."""
    return image.detach().cpu().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)


def _overlay(picture: Tensor, heat: Tensor) -> Tensor:
    """A heat map (H, W) in colour over an image (H, W, 3)."""
    import matplotlib

    colours = torch.from_numpy(matplotlib.colormaps["inferno"](heat.cpu().double().numpy())[..., :3])
    return 0.4 * picture.double().mean(2, keepdim=True) + 0.6 * colours


def _short(title: str) -> str:
    return title if len(title) <= 20 else f"{title[:19]}…"


def _said(found: Explained) -> str:
    return f"class {found.label}, {found.probability:.0%}"


def _tap_title(tap: str) -> str:
    return f"stage 1/{tap.removeprefix('stage')}" if tap.startswith("stage") else tap
