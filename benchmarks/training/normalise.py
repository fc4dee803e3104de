"""What is done to images before a network sees them, as the network's own first layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from td_compiler.benchmarks.data.images import Images, Stream, as_float
from td_compiler.network.normalised import Normalise

__all__ = ["normalisation"]

# Statistics of data too large for memory are those of so many of its images.
_SAMPLE = 5_000


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
