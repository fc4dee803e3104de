"""A toy set of single frequencies (thesis 3.2.2, SPEC 6.4): 2D cosines that differ in rotation, phase and amplitude."""

from __future__ import annotations

import math

import torch

from td_compiler.benchmarks.data.datasets import Images

__all__ = ["FREQUENCIES", "cosines"]

FREQUENCIES = (0, 1, 2, 4, 8)  # cycles per image side: classes 0 to 4
_VARIANTS = 10
_TEST_SHARE = 0.2


def cosines(*, train: bool, side: int = 32) -> Images:
    """The training (4,000) or test (1,000) images (N, 1, side, side), uint8, of the five frequencies.

    Every class has 10 rotations in (0, 2 pi), 10 phases in [0, 2 pi) and 10 amplitudes in (0, 1]; an image is 0.5 + 0.5
    times its cosine. The thesis names no split: a fifth of each class, drawn once for all, is the test set. Images that
    are equal (0 Hz has no rotation) go together, so that no test image is a training image.
    """
    chosen = []
    for frequency in FREQUENCIES:
        images = (255 * _waves(frequency, side)).round().to(torch.uint8)
        test = _fifth(images)
        chosen.append(images[~test] if train else images[test])
    labels = torch.cat([torch.full((len(each),), label) for label, each in enumerate(chosen)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    names = tuple(f"{frequency} Hz" for frequency in FREQUENCIES)
    return Images(torch.cat(chosen)[order], labels[order], names)


def _fifth(images: torch.Tensor) -> torch.Tensor:
    """Which images (N,) are for testing: whole groups of equal ones in a random order, until a fifth is full."""
    _, group, sizes = images.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    wanted, test = round(_TEST_SHARE * len(images)), torch.zeros(len(images), dtype=torch.bool)
    for number in torch.randperm(len(sizes), generator=torch.Generator().manual_seed(0)).tolist():
        if int(test.sum() + sizes[number]) <= wanted:
            test |= group == number
    return test


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
