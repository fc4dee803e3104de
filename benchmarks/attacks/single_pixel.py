"""The single-pixel attack, which foolbox had until its version 2."""

from __future__ import annotations

from typing import Any

import eagerpy
import foolbox
import torch
from foolbox.attacks.base import FlexibleDistanceMinimizationAttack, T, raise_if_kwargs
from torch import Tensor

from td_compiler.benchmarks.attacks.search import Target

__all__ = ["SinglePixelAttack"]


class SinglePixelAttack(FlexibleDistanceMinimizationAttack):
    """Sets one random pixel, in all channels, to the lower and then to the upper bound, until the class flips.

    Each pixel is tried alone, as by foolbox 2's attack of this name; every image has its own random order, and leaves
    the batch as soon as it is misclassified. Where no pixel succeeds the image is returned as it was.

    Args:
        distance: the distance by which foolbox judges perturbations.
        max_pixels: how many pixels of an image are tried.
    """

    def __init__(self, *, distance: foolbox.Distance | None = None, max_pixels: int = 1000) -> None:
        super().__init__(distance=distance)
        self.max_pixels = max_pixels

    def run(
        self, model: foolbox.Model, inputs: T, criterion: Any, *, early_stop: float | None = None, **kwargs: Any
    ) -> T:
        """The perturbed images, of the inputs' shape and type. `early_stop` has no effect: all sizes are one pixel."""
        raise_if_kwargs(kwargs)
        restore = eagerpy.astensor_(inputs)[1]
        target = Target.of(model, inputs, criterion)
        result = target.images.clone()
        pixels = target.images[0, 0].numel()
        orders = torch.rand(len(result), pixels, device=result.device).argsort(1)[:, : self.max_pixels]
        remaining = target.everything[~target.fooled_by(target.images, target.everything)]
        for tried in orders.T:
            for bound in model.bounds:
                perturbed = _with_pixel(target.images[remaining], tried[remaining], bound)
                changed = (perturbed != target.images[remaining]).flatten(1).any(1)
                fooled = changed.clone()
                fooled[changed] = target.fooled_by(perturbed[changed], remaining[changed])
                result[remaining[fooled]] = perturbed[fooled]
                remaining = remaining[~fooled]
        restored: T = restore(eagerpy.astensor(result))
        return restored


def _with_pixel(images: Tensor, pixels: Tensor, value: float) -> Tensor:
    """Images (N, C, H, W) with the pixel of each that `pixels` (N,) numbers, row by row, set in all channels."""
    flat = images.flatten(2).clone()
    flat[torch.arange(len(flat), device=flat.device), :, pixels] = value
    return flat.view_as(images)
