"""The networks of the segmentation task (thesis exp 3): FCN-light, U-Net-like, and the TD network of its encoder.

Images (N, C, H, W) become scores (N, num_classes, H, W).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import ConversionError, reverse
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.graph.initialise import initialise_he

__all__ = ["NETWORKS", "Entry", "FCNLight", "SegmentationSpec", "UNetEncoder", "UNetLike", "spec_of"]

Size = tuple[int, int, int]
_SOURCE = "segmentation"


def _double(inputs: int, width: int) -> nn.Sequential:
    """Two 3x3 convolutions with norm and activation: (N, inputs, H, W) to (N, width, H, W)."""
    layers: list[nn.Module] = []
    for channels in (inputs, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class UNetEncoder(nn.Module):
    """The contracting path of a U-Net (Ronneberger et al. 2015): two convolutions at every scale, poolings between.

    Images (N, C, H, W) become the coarsest map (N, widths[-1], H / 4, W / 4) with three widths.
    """

    initialise = staticmethod(initialise_he)

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = itertools.pairwise((in_channels, *widths))
        self.stages = nn.ModuleList(_double(inputs, width) for inputs, width in pairs)
        self.pool = nn.MaxPool2d(2)
        self.apply(self.initialise)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The map of every scale, finest first."""
        maps = [self.stages[0](images)]
        for stage in list(self.stages)[1:]:
            maps.append(stage(self.pool(maps[-1])))
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps(images)[-1]


class UNetLike(nn.Module):
    """A U-Net of three scales: encoder, and a decoder that joins the grown map with the encoder's of the same scale."""

    initialise = staticmethod(initialise_he)

    def __init__(self, in_channels: int, num_classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = UNetEncoder(in_channels, widths)
        steps = list(itertools.pairwise(reversed(widths)))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for coarse, fine in steps)
        self.decode = nn.ModuleList(_double(2 * fine, fine) for _, fine in steps)
        self.scores = nn.Conv2d(widths[0], num_classes, 1)
        self.apply(self.initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        *finer, x = self.encoder.maps(images)
        for grow, decode, skip in zip(self.grow, self.decode, reversed(finer), strict=True):
            x = decode(torch.cat([skip, grow(x)], 1))
        scores: torch.Tensor = self.scores(x)
        return scores


class FCNLight(nn.Module):
    """A light FCN-8s (Long et al. 2015): scores at 1/8, 1/4 and 1/2 of the image, grown bilinearly and added."""

    initialise = staticmethod(initialise_he)

    def __init__(self, in_channels: int, num_classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = itertools.pairwise((in_channels, *widths))
        self.stages = nn.ModuleList(nn.Sequential(_double(*pair), nn.MaxPool2d(2)) for pair in pairs)
        self.scores = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in widths)
        self.apply(self.initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, scores = images, []
        for stage, score in zip(self.stages, self.scores, strict=True):
            x = stage(x)
            scores.append(score(x))
        total: torch.Tensor = scores.pop()
        for finer in reversed(scores):
            total = finer + F.interpolate(total, size=finer.shape[-2:], mode="bilinear")
        return F.interpolate(total, size=images.shape[-2:], mode="bilinear")


@dataclass(frozen=True)
class Entry:
    """A network of the experiment.

    Attributes:
        arrangement: `bu`, or that of a top-down network.
        make: it, from its images' channels, the number of classes and its widths; None for the top-down network of
            the U-Net's encoder, with a classifier of pixels.
    """

    arrangement: Any
    make: Callable[[int, int, tuple[int, ...]], nn.Module] | None = None


NETWORKS = {
    "fcn-light": Entry("bu", FCNLight),
    "unet-like": Entry("bu", UNetLike),
    "td": Entry("mirror"),
    "td-uniform": Entry("uniform"),
    "td-reversed": Entry("reversed"),
}


class SegmentationSpec(NetworkSpec):
    """A network of the table above, with stages of `width`, 2 `width` and 4 `width` filters."""

    def content(self) -> str:
        """Nothing: these networks change with the compiler's version."""
        return ""

    def build(self, input_size: Size, num_classes: int) -> nn.Module:
        """The network with fresh weights."""
        options = dict(self.options)
        width, make = options.pop("width"), NETWORKS[self.name.removeprefix(f"{_SOURCE}:")].make
        widths = (width, 2 * width, 4 * width)
        if make is not None:
            return make(input_size[0], num_classes, widths)
        filters: Any = self.arrangement
        options |= {"task": "segmentation", "num_classes": num_classes, "input_size": input_size, "init": "fresh"}
        return reverse(UNetEncoder(input_size[0], widths), filters=filters, **options)


def spec_of(name: str, width: int) -> SegmentationSpec:
    """A network of the table, by key.

    Raises:
        ConversionError: if there is none of that name.
    """
    if name not in NETWORKS:
        raise ConversionError(f"There is no network {name!r} for segmentation, only {', '.join(NETWORKS)}.")
    return SegmentationSpec(f"{_SOURCE}:{name}", NETWORKS[name].arrangement, (("width", width),))
