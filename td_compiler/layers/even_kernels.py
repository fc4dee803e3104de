"""Convolutions whose kernels have an even side.

Everything here uses torch alone: emitted source carries these definitions verbatim.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["EvenConv2d"]


class EvenConv2d(nn.Conv2d):
    """A convolution that keeps its map's size, with a zero more below and on the right.

    As `padding="same"` for a kernel with an even side, in steps that quantisers know.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation, groups=groups, bias=bias)
        self.padding = tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, across = (d * (k - 1) % 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return super().forward(F.pad(x, (0, across, 0, down)))
