"""How a map grows to the size of the next finer scale (SPEC 2.9; paper section 3.1).

Everything here uses torch alone: emitted source carries these definitions verbatim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TransposedUpsample", "upsample_aligned", "upsample_bilinear", "upsample_nearest"]


def upsample_nearest(x: Tensor, image: Tensor) -> Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) of an image by nearest neighbours."""
    return F.interpolate(x, size=image.shape[-2:], mode="nearest")


def upsample_bilinear(x: Tensor, image: Tensor) -> Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) of an image by bilinear weights."""
    return F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=False)


def upsample_aligned(x: Tensor, image: Tensor) -> Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) of an image, corners to corners."""
    return F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=True)


class TransposedUpsample(nn.Module):
    """Bring a map (N, C, h, w) to the size (H, W) of an image by a learned convolution.

    The convolution is transposed, its kernel and stride the factor f. Sizes that f does
    not divide: the map is cropped, (h f, w f) to (H, W).
    """

    def __init__(self, channels: int, factor: tuple[int, int], bias: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.factor = factor
        self.conv = nn.ConvTranspose2d(channels, channels, factor, factor, bias=bias)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        grown = self.conv(x)
        if torch.compiler.is_exporting():  # a slice would hold for some sizes alone
            right, bottom = width - grown.shape[-1], height - grown.shape[-2]
            return F.pad(grown, (0, right, 0, bottom))
        return grown[..., :height, :width]
