"""What the corruptions are made of: blurs, zooms, warps and noise with structure, for batches of images in torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gaussian_blur", "plasma", "shifted_sum", "smooth_field", "warp", "zoomed"]


def gaussian_blur(images: Tensor, deviation: float, *, reach: int | None = None) -> Tensor:
    """Images (N, C, H, W) under a Gaussian whose standard deviation is given in pixels; borders are repeated.

    Args:
        images: (N, C, H, W).
        deviation: 0 leaves the images as they are.
        reach: the taps on either side; four deviations by default.
    """
    if not deviation:
        return images
    reach = math.ceil(4 * deviation) if reach is None else reach
    taps = torch.arange(-reach, reach + 1.0, device=images.device, dtype=images.dtype)
    weights = (-0.5 * (taps / deviation) ** 2).exp()
    weights = weights / weights.sum()
    flat = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(flat, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return blurred.view_as(images)


def shifted_sum(images: Tensor, angles: Tensor, deviation: float) -> Tensor:
    """Motion blur: the weighted mean of images moved along a line, the weights one half of a Gaussian.

    Args:
        images: (N, C, H, W); borders are repeated.
        angles: of each image's line (N,), in radians; 0 is to the right.
        deviation: of the Gaussian, in pixels; the line ends after three.
    """
    taps = torch.arange(math.ceil(3 * deviation) + 1, device=images.device, dtype=images.dtype)
    weights = (-0.5 * (taps / deviation) ** 2).exp()
    reach = len(taps) - 1
    columns = (taps * angles.cos()[:, None]).round().long() + reach
    rows = (taps * angles.sin()[:, None]).round().long() + reach
    side = 2 * reach + 1
    kernels = images.new_zeros(len(images), side * side)
    kernels.scatter_add_(1, rows * side + columns, (weights / weights.sum()).expand(len(images), -1))
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    moved = F.conv2d(padded.transpose(0, 1), kernels.view(-1, 1, side, side), groups=len(images))
    return moved.transpose(0, 1)


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The middle of images (N, C, H, W), enlarged by a factor of at least 1 to their own size.

    As Hendrycks and Dietterich do: whole pixels are cut, the cut's corners stay corners as it grows, bilinearly, and
    what is then more than the image is trimmed.
    """
    sides = images.shape[2:]
    cuts = [math.ceil(side / factor) for side in sides]
    tops = [(side - cut) // 2 for side, cut in zip(sides, cuts, strict=True)]
    middle = images[..., tops[0] : tops[0] + cuts[0], tops[1] : tops[1] + cuts[1]]
    grown = F.interpolate(middle, [round(cut * factor) for cut in cuts], mode="bilinear", align_corners=True)
    trims = [(have - side) // 2 for have, side in zip(grown.shape[2:], sides, strict=True)]
    return grown[..., trims[0] : trims[0] + sides[0], trims[1] : trims[1] + sides[1]]


def warp(images: Tensor, positions: Tensor) -> Tensor:
    """Images (N, C, H, W) read at positions (N, H, W, 2), x and y in pixels, bilinearly; they continue mirrored."""
    size = positions.new_tensor([images.shape[3], images.shape[2]])
    grid = (2 * positions + 1) / size - 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def smooth_field(images: Tensor, deviation: float) -> Tensor:
    """Uniform noise in [-1, 1] for each image, (N, H, W), blurred by a Gaussian."""
    noise = 2 * torch.rand_like(images[:, :1]) - 1
    return gaussian_blur(noise, deviation, reach=math.ceil(3 * deviation))[:, 0]


def plasma(images: Tensor, decay: float) -> Tensor:
    """Clouds in [0, 1], (N, 1, H, W): noise at every scale, each finer one weaker by `decay` squared.

    The sum of bilinearly enlarged noise stands for the diamond-square fractal of Hendrycks and Dietterich, whose
    amplitudes fall in the same way.
    """
    height, width = images.shape[2:]
    clouds = images.new_zeros(len(images), 1, height, width)
    for octave in range(1, math.ceil(math.log2(max(height, width))) + 1):
        noise = torch.rand(len(images), 1, 2**octave, 2**octave, device=images.device, dtype=images.dtype)
        clouds += F.interpolate(noise, (height, width), mode="bilinear") * decay ** (-2 * octave)
    clouds -= clouds.amin((2, 3), keepdim=True)
    return clouds / clouds.amax((2, 3), keepdim=True)
