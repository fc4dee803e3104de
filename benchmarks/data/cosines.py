"""A toy set of single frequencies (thesis 3.2.2, SPEC 6.4): 2D cosines that differ in rotation, phase and amplitude."""

from __future__ import annotations

import math

import torch

from benchmarks.data.datasets import Images

__all__ = ["FREQUENCIES", "cosines"]

FREQUENCIES = (0, 1, 2, 4, 8)  # cycles per image side: classes 0 to 4
_VARIANTS = 10
_TEST_SHARE = 0.2


def cosines(*, train: bool, side: int = 32) -> Images:
    """The training (4,000) or test (1,000) images (N, 1, side, side), uint8, of the five frequencies.

    Every class has 10 rotations in (0, 2 pi), 10 phases in [0, 2 pi) and 10 amplitudes in (0, 1]; an image is 0.5 + 0.5
    times its cosine. The thesis names no split: a fifth of the images, drawn once for all, is the test set.
    """
    images = torch.cat([_waves(frequency, side) for frequency in FREQUENCIES])
    labels = torch.arange(len(FREQUENCIES)).repeat_interleave(_VARIANTS**3)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test = int(_TEST_SHARE * len(images))
    chosen = order[test:] if train else order[:test]
    names = tuple(f"{frequency} Hz" for frequency in FREQUENCIES)
    return Images((255 * images[chosen]).round().to(torch.uint8), labels[chosen], names)


def _waves(frequency: int, side: int) -> torch.Tensor:
    """All variants (1000, 1, side, side) of one frequency, in [0, 1]."""
    step = torch.arange(_VARIANTS)
    rotations = 2 * math.pi * (step + 1) / (_VARIANTS + 1)
    phases = 2 * math.pi * step / _VARIANTS
    amplitudes = (step + 1) / _VARIANTS
    rotation, phase, amplitude = (
        grid.reshape(-1, 1, 1) for grid in torch.meshgrid(rotations, phases, amplitudes, indexing="ij")
    )
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    along = x * rotation.cos() + y * rotation.sin()
    waves = 0.5 + 0.5 * amplitude * (2 * math.pi * frequency * along + phase).cos()
    return waves[:, None]
