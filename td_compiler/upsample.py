"""How a map grows to the size of the next finer scale (SPEC 2.9; paper section 3.1).

Everything here uses torch alone: emitted source carries these definitions verbatim.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["TransposedUpsample", "upsample_bilinear", "upsample_nearest"]


def upsample_nearest(x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Bring a map (N, C, h, w) to the height and width of an image (N, C', H, W) by nearest neighbours."""
    return F.interpolate(x, size=image.shape[-2:], mode="nearest")


def upsample_bilinear(x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Bring a map (N, C, h, w) to the height and width of an image (N, C', H, W) by bilinear interpolation."""
    return F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=False)


class TransposedUpsample(nn.Module):
    """Bring a map (N, C, h, w) to the size of an image by a learned transposed convolution, factor f = kernel = stride.

    Sizes that f does not divide: the map is cropped, (h f, w f) to (H, W).
    """

    def __init__(self, channels: int, factor: tuple[int, int], bias: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.factor = factor
        self.conv = nn.ConvTranspose2d(channels, channels, factor, stride=factor, bias=bias)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        return self.conv(x)[..., :height, :width]
