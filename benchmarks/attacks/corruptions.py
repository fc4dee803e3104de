"""Common corruptions after Hendrycks and Dietterich (2019), "Benchmarking Neural Network Robustness".

Fourteen of their fifteen, each at five severities; frost is left out, as it needs photographs of frost. The strengths
are those of their CIFAR-10-C, whose images have 32 pixels a side; on larger ones lengths grow with the shorter side.
Their filters come from several libraries; here they are written in torch, for any device, grey images and any size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from td_compiler.benchmarks.attacks.filters import gaussian_blur, plasma, shifted_sum, smooth_field, warp, zoomed

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption"]

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        kind: its group in the paper: noise, blur, weather or digital.
        apply: corrupts images (N, C, H, W) in [0, 1], by the strength given; may leave [0, 1].
        strengths: that of each severity.
    """

    kind: str
    apply: Callable[[Tensor, Any], Tensor]
    strengths: tuple[Any, ...]

    def __call__(self, images: Tensor, severity: int) -> Tensor:
        """Images of the same shape, in [0, 1] and rounded to 256 levels. Torch's global generator draws what is random.

        Args:
            images: (N, C, H, W) in [0, 1].
            severity: 1 to 5.
        """
        corrupted = self.apply(images, self.strengths[severity - 1])
        return (corrupted.clamp(0, 1) * 255).round() / 255


def _unit(images: Tensor) -> float:
    """How many pixels stand for one of a 32-pixel image; never less than one, or small images would keep sharp."""
    return max(1.0, min(images.shape[2:]) / 32)


def _gaussian_noise(images: Tensor, deviation: float) -> Tensor:
    return images + deviation * torch.randn_like(images)


def _shot_noise(images: Tensor, photons: float) -> Tensor:
    return torch.poisson(images * photons) / photons


def _impulse_noise(images: Tensor, share: float) -> Tensor:
    noise = torch.rand_like(images)
    return torch.where(noise < share, (noise < share / 2).to(images.dtype), images)


def _defocus_blur(images: Tensor, strength: tuple[float, float]) -> Tensor:
    radius, softness = strength[0] * _unit(images), strength[1]
    reach = math.ceil(radius) + 1
    line = torch.arange(-reach, reach + 1.0, device=images.device, dtype=images.dtype)
    disk = ((line[:, None] ** 2 + line**2) <= radius**2).to(images.dtype)
    kernel = gaussian_blur(disk[None, None] / disk.sum(), softness, reach=1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel).view_as(images)


def _glass_blur(images: Tensor, strength: tuple[float, int]) -> Tensor:
    """Blur, swap every pixel with a random one of those above and to the left, blur."""
    deviation, rounds = strength
    shuffled = gaussian_blur(images, deviation)
    every = torch.arange(len(images), device=images.device)
    height, width = images.shape[2:]
    for _ in range(rounds):
        steps = torch.randint(0, 2, (2, height, width, len(images)), device=images.device)
        for row in range(height - 1, 0, -1):
            for column in range(width - 1, 0, -1):
                rows, columns = row - steps[0, row, column], column - steps[1, row, column]
                other = shuffled[every, :, rows, columns]
                shuffled[every, :, rows, columns] = shuffled[:, :, row, column]
                shuffled[:, :, row, column] = other
    return gaussian_blur(shuffled, deviation)


def _motion_blur(images: Tensor, deviation: float) -> Tensor:
    angles = _angles(images, -45, 45)
    return shifted_sum(images, angles, deviation * _unit(images))


def _zoom_blur(images: Tensor, end: float) -> Tensor:
    factors = np.arange(1, end, 0.01)  # as they wrote it, with what rounding makes of the end
    total = sum((zoomed(images, float(factor)) for factor in factors), images)
    return total / (len(factors) + 1)


def _snow(images: Tensor, strength: tuple[float, float, float, float, float, float]) -> Tensor:
    mean, deviation, zoom, threshold, motion, clear = strength
    flakes = zoomed(mean + deviation * torch.randn_like(images[:, :1]), zoom)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    flakes = shifted_sum(flakes, _angles(images, -135, -45), motion * _unit(images))
    grey = images.mean(1, keepdim=True)
    whitened = clear * images + (1 - clear) * torch.maximum(images, 1.5 * grey + 0.5)
    return whitened + flakes + flakes.rot90(2, dims=(2, 3))


def _fog(images: Tensor, strength: tuple[float, float]) -> Tensor:
    thickness, decay = strength
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * plasma(images, decay)) * brightest / (brightest + thickness)


def _brightness(images: Tensor, added: float) -> Tensor:
    """Add to the value of the HSV colour, which keeps hue and saturation: all channels grow by the same factor."""
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter)


def _contrast(images: Tensor, factor: float) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def _elastic(images: Tensor, strength: tuple[float, float, float]) -> Tensor:
    """A random affine map, then displacements that vary smoothly."""
    side = min(images.shape[2:])
    size, deviation, jitter = (each * side for each in strength)
    centre, reach = side // 2, side // 3
    corners = [[centre + reach, centre + reach], [centre + reach, centre - reach], [centre - reach, centre - reach]]
    points = torch.tensor(corners, device=images.device, dtype=images.dtype).expand(len(images), 3, 2)
    moved = points + jitter * (2 * torch.rand_like(points) - 1)
    affine = torch.linalg.solve(F.pad(points, (0, 1), value=1.0), moved)  # (N, 3, 2): [x, y, 1] @ affine
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in reversed(images.shape[2:])), indexing="xy"), -1)
    grid = F.pad(grid.to(images), (0, 1), value=1.0)  # (H, W, 3): x, y, 1
    straight = warp(images, torch.einsum("hwi,nij->nhwj", grid, affine))
    displacement = size * torch.stack([smooth_field(images, deviation) for _ in range(2)], -1)
    return warp(straight, grid[..., :2] + displacement)


def _pixelate(images: Tensor, share: float) -> Tensor:
    def coarsened(image: Image.Image) -> Image.Image:
        small = image.resize([int(side * share) for side in image.size], Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BOX)

    return _by_pillow(images, coarsened)


def _jpeg(images: Tensor, quality: int) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _by_pillow(images, compressed)


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Images (N, 1 or 3, H, W), changed one by one."""
    pixels = (images * 255).round().byte().movedim(1, 3).cpu().numpy()
    changed = [np.atleast_3d(np.asarray(change(Image.fromarray(each.squeeze())))) for each in pixels]
    return torch.from_numpy(np.stack(changed)).movedim(3, 1).to(images) / 255


def _angles(images: Tensor, low: float, high: float) -> Tensor:
    """An angle (N,) for each image, in radians, between two in degrees."""
    degrees = low + (high - low) * torch.rand(len(images), device=images.device, dtype=images.dtype)
    return degrees * (math.pi / 180)


CORRUPTIONS: Mapping[str, Corruption] = {
    "Gaussian noise": Corruption("noise", _gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot noise": Corruption("noise", _shot_noise, (500, 250, 100, 75, 50)),
    "impulse noise": Corruption("noise", _impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus blur": Corruption("blur", _defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass blur": Corruption("blur", _glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion blur": Corruption("blur", _motion_blur, (1, 1.5, 2, 2, 2.5)),
    "zoom blur": Corruption("blur", _zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": Corruption(
        "weather",
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 12, 0.8),
        ),
    ),
    "fog": Corruption("weather", _fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption("weather", _brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption("digital", _contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic transform": Corruption(
        "digital",
        _elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Corruption("digital", _pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "JPEG compression": Corruption("digital", _jpeg, (80, 65, 58, 50, 40)),
}
