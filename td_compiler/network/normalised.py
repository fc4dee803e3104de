"""A network with what was done to its training images as its first layer."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Normalise", "Normalised"]


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
