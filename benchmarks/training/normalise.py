"""What is done to images before a network sees them, as the network's own first layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from td_compiler.benchmarks.data.images import Images, Stream, as_float

__all__ = ["Normalise", "Normalised", "normalisation"]

# Statistics of data too large for memory are those of so many of its images.
_SAMPLE = 5_000


class Normalise(nn.Module):
    """(images - mean) / deviation, with buffers (C, H, W) or (C, 1, 1)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation


class Normalised(nn.Module):
    """A network with what was done to its training images as its first layer: takes images (N, C, H, W) in [0, 1].

    Attributes:
        normalise: that layer; images go through it before a top-down network's pyramid.
        net: the network itself.
    """

    def __init__(self, normalise: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.net(self.normalise(images))
        return scores


def normalisation(data: Images | Stream, kind: str) -> nn.Module:
    """The first layer that a recipe asks for, from the training images as networks see them."""
    if kind == "none":
        return nn.Identity()
    if isinstance(data, Stream):
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
        data = data.subset(chosen).gather()
    images = data.cropped().images
    mean = _mean(images, lambda chunk: chunk)
    if kind == "pixel-mean":
        return Normalise(mean.float(), torch.ones(len(mean), 1, 1))
    mean = mean.mean((1, 2), keepdim=True)
    variance = _mean(images, lambda chunk: (chunk - mean).square()).mean((1, 2), keepdim=True)
    return Normalise(mean.float(), variance.clamp(min=1e-6).sqrt().float())


def _mean(images: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean (C, H, W) over all images of what a function makes of them, in float64."""
    sums = [of(as_float(chunk).double()).sum(0) for chunk in images.split(1_000)]
    return torch.stack(sums).sum(0) / len(images)
