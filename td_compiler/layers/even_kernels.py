"""Convolutions whose kernels have an even side.

Everything here uses torch alone: emitted source carries these definitions verbatim.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EvenConv2d"]


class EvenConv2d(nn.Conv2d):
    """A convolution that keeps its map's size: a side of even reach pads one more zero behind, as "same" does."""

    def forward(self, x: Tensor) -> Tensor:
        down, across = (d * (k - 1) % 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return super().forward(F.pad(x, (0, across, 0, down)))
