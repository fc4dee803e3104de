"""Refine one window: a top-down network whose finer stages, nearly all of its cost, look at part of the image alone.

The paper's outlook suggests to spend the fine scales on informative patches only. Its coarse map, which is there before
the costly stages begin, says where these are: no label, gradient or second network is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from td_compiler.capture.meta import ShapesOnly, dtype_of, empty_images
from td_compiler.capture.skeleton import skeleton
from td_compiler.errors import ConversionError
from td_compiler.graph.operators import Pair
from td_compiler.layers.pyramid import factor_pair
from td_compiler.network.base import TopDownNet
from td_compiler.network.segments import carried
from td_compiler.surroundings import neutral_surroundings

__all__ = ["Refined", "Window", "contrast", "crop"]

Saliency = Callable[[torch.Tensor], torch.Tensor]

_COARSE_SHARE = 0.1  # of all multiply-accumulate operations: what seeing the whole image may cost


def contrast(maps: torch.Tensor) -> torch.Tensor:
    """Squared distance of each place's features from the mean of their map: (N, C, h, w) to (N, h, w)."""
    return (maps - maps.mean((2, 3), keepdim=True)).square().sum(1)


@dataclass(frozen=True)
class Window:
    """A window of one size for each image, in pixels of the map that it was chosen on.

    Attributes:
        top, left: where it begins, (N,) each.
        size: its (height, width).
    """

    top: torch.Tensor
    left: torch.Tensor
    size: Pair

    def finer(self, factor: Pair) -> Window:
        """The same window in the pixels of a map that is larger by (height, width) factors."""
        (down, across), (height, width) = factor, self.size
        return Window(self.top * down, self.left * across, (height * down, width * across))


def crop(maps: torch.Tensor, window: Window) -> torch.Tensor:
    """The window of each map: (N, C, H, W) to (N, C, height, width), differentiable in the maps.

    Where a window reaches over the border, the border's pixels are repeated.
    """
    rows = _places(window.top, window.size[0], maps.shape[2])
    columns = _places(window.left, window.size[1], maps.shape[3])
    maps = torch.take_along_dim(maps, rows[:, None, :, None], dim=2)
    return torch.take_along_dim(maps, columns[:, None, None, :], dim=3)


def _places(start: torch.Tensor, length: int, limit: int) -> torch.Tensor:
    """The places (N, length) from the starts (N,) on, none beyond the limit."""
    return (start[:, None] + torch.arange(length, device=start.device)).clamp(max=limit - 1)


class Refined(nn.Module):
    """A top-down network that sees the whole image coarsely and one window of it finely: images to class scores.

    The stages down to `from_scale` run on the whole image. Of their last map the most salient window is taken, image by
    image; the finer stages run on it and on the same window of the finer images, the head on what they make of it. Cost
    and memory of these stages fall with the window's area; with `patch=1` nothing is cut and the network is as it was.

    It trains like any network, the gradient passing through the window; the choice of the window has none. It shares
    the layers of `td`: several of them with other patches are one network at several costs.

    Attributes:
        td: the top-down network.
        patch: the window's share of the image's height and of its width; rounded up to whole pixels of the coarse map.
        from_scale: the scale of the map that the window is chosen on; windows begin at multiples of it.
        saliency: how telling each place of a map is: (N, C, h, w) to (N, h, w). A window's saliency is its sum.
    """

    @neutral_surroundings()
    def __init__(
        self,
        td: TopDownNet,
        patch: float = 0.5,
        *,
        from_scale: int | Pair | None = None,
        saliency: Saliency = contrast,
    ) -> None:
        """Wrap a network.

        Args:
            td: what :func:`td_compiler.reverse` returns for a classifier whose head takes maps of any size.
            patch: above 0, at most 1.
            from_scale: one of `td.scales`, not the finest. Default: the finest one that is reached within a tenth of
                the network's multiply-accumulate operations, at least the coarsest.
            saliency: by default the squared distance from the mean of the map, which needs no labels.

        Raises:
            ConversionError: if an argument is none of these, or the head takes maps of one size alone.
        """
        super().__init__()
        if not isinstance(td, TopDownNet):
            raise ConversionError(
                f"td is a {type(td).__name__}, no top-down network: pass what reverse(model) returns."
            )
        if not 0 < patch <= 1:
            raise ConversionError(
                f"patch={patch!r} is no share of the image's sides: give a number above 0, at most 1."
            )
        coarser = td.scales[1:]
        if from_scale is not None and from_scale not in coarser:
            raise ConversionError(f"from_scale={from_scale!r} is not one of {', '.join(map(str, coarser))}.")
        self.td, self.patch, self.saliency = td, patch, saliency
        self.from_scale = _affordable(td) if from_scale is None else from_scale
        self._check_head()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (N, K) of images (N, C, H, W)."""
        return self.td.run_segment(self.td.segments[-1], x=self.refined_map(images))

    def refined_map(self, images: torch.Tensor) -> torch.Tensor:
        """The last map of the windows (N, C, height, width), which the head reads, of images (N, C, H, W)."""
        levels = self.td.pyramid(images)[::-1]
        state, count = self._coarse_maps(levels), self._coarse_stages
        window, size = self._window(state["x"]), state["x"].shape[2:]
        if window is not None:
            # The map before the last one (SPEC 2.13) may be smaller still: brought to one size, one window fits both.
            whole = {name: x if x.shape[2:] == size else F.interpolate(x, size) for name, x in state.items()}
            state = {name: crop(x, window) for name, x in whole.items()}
        for segment, image in zip(self.td.segments[count:-1], levels[count:], strict=True):
            if window is not None:
                image = crop(image, window.finer(self._factor(segment.scale)))
            state = carried(self.td.run_segment(segment, image=image, **state))
        return state["x"]

    @torch.no_grad()
    def boxes(self, images: torch.Tensor) -> torch.Tensor:
        """The windows of images (N, C, H, W) as (N, 4): left, top, right, bottom in pixels, the last two exclusive."""
        height, width = images.shape[2:]
        window = self._window(self._coarse_maps(self.td.pyramid(images)[::-1])["x"])
        if window is None:
            return torch.tensor([[0, 0, width, height]], device=images.device).expand(len(images), 4)
        fine = window.finer(self._factor(1))
        right, bottom = fine.left + fine.size[1], fine.top + fine.size[0]
        return torch.stack([fine.left, fine.top, right.clamp(max=width), bottom.clamp(max=height)], 1)

    def extra_repr(self) -> str:
        """The settings."""
        saliency = getattr(self.saliency, "__name__", self.saliency)
        return f"patch={self.patch}, from_scale={self.from_scale}, saliency={saliency}"

    @property
    def _coarse_stages(self) -> int:
        """How many stages see the whole image."""
        return len(self.td.scales) - self.td.scales.index(self.from_scale)

    def _coarse_maps(self, levels: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the stage at `from_scale` hands on, the map (N, C, h, w) as `x`, of images coarse to fine."""
        state: dict[str, torch.Tensor] = {}
        for segment, image in zip(self.td.segments[: self._coarse_stages], levels, strict=False):
            state = carried(self.td.run_segment(segment, image=image, **state))
        return state

    def _window(self, x: torch.Tensor) -> Window | None:
        """The most salient window of each map (N, C, h, w); None where it is all of it."""
        height, width = x.shape[2:]
        size = (math.ceil(self.patch * height), math.ceil(self.patch * width))
        if size == (height, width):
            return None
        with torch.no_grad():
            salience = F.avg_pool2d(self.saliency(x)[:, None], size, stride=1)
            place = salience.flatten(1).argmax(1)
        across = salience.shape[-1]
        return Window(place // across, place % across, size)

    def _factor(self, scale: int | Pair) -> Pair:
        """How many pixels of a finer scale's map are one of the coarse map, along (height, width)."""
        (down, across), (height, width) = map(factor_pair, (self.from_scale, scale))
        return down // height, across // width

    def _check_head(self) -> None:
        """Run without weights, to see that the head takes what it will get."""
        bones = skeleton(self)
        try:
            with torch.no_grad(), ShapesOnly():
                scores = bones(empty_images(self.td.report.input_size, dtype_of(self)))
        except RuntimeError as error:
            raise ConversionError(
                f"The head cannot read a window (patch={self.patch}): it was made for maps of one size; use a network"
                f" whose head pools over the whole map, or patch=1. ({str(error).splitlines()[0]})"
            ) from error
        if scores.dim() != 2:
            raise ConversionError(
                f"The network returns {tuple(scores.shape)} for 2 images, not class scores (N, K): only classifiers can"
                " be refined in a window."
            )


def _affordable(td: TopDownNet) -> int | Pair:
    """The finest scale that a tenth of the network's multiply-accumulate operations reach, at least the coarsest."""
    *stages, _ = td.report.stages
    limit = _COARSE_SHARE * sum(row.top_down.macs for row in td.report.stages)
    spent, reached = 0, td.scales[-1]
    for row, scale in zip(reversed(stages), reversed(td.scales[1:]), strict=False):
        spent += row.top_down.macs
        if spent <= limit:
            reached = scale
    return reached
