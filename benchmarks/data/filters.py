"""Images that lack a part of their frequencies (thesis 3.2.1 and 3.2.3, SPEC 6.4): blurs and Fourier masks.

Images are (N, C, H, W), floating, in [0, 1].
"""

from __future__ import annotations

import math

import torch

from td_compiler.layers.pyramid import filter_and_subsample, working_dtype

__all__ = ["SIGMAS", "blur", "high_pass", "low_pass"]

SIGMAS = (0.0, 0.6, 1.2, 2.4)  # of the thesis; 0 is no blur


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of `sigma` pixels, cut at ceil(3 sigma), borders reflected; 0 leaves the images as they are."""
    if sigma == 0:
        return images
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    taps = taps.to(working_dtype(images)) / taps.sum()
    return filter_and_subsample(filter_and_subsample(images, taps, 1).mT, taps, 1).mT


def low_pass(images: torch.Tensor, radius: float) -> torch.Tensor:
    """What is left of the images by a mask of the frequencies u^2 + v^2 <= radius^2 (thesis eq. 3.1).

    u and v are in cycles per image side. The values may leave [0, 1] a little.
    """
    height, width = images.shape[-2:]
    v = torch.fft.fftfreq(height, 1 / height, device=images.device)
    u = torch.fft.rfftfreq(width, 1 / width, device=images.device)
    mask = v[:, None] ** 2 + u**2 <= radius**2
    return torch.fft.irfft2(torch.fft.rfft2(images) * mask, s=(height, width))


def high_pass(images: torch.Tensor, radius: float) -> torch.Tensor:
    """What a low pass takes away, with values in [-1, 1] around 0 (thesis eq. 3.1)."""
    return images - low_pass(images, radius)
