"""From an attack of a given size to the smallest size at which it succeeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import eagerpy
import foolbox
import torch
from foolbox.attacks.base import MinimizationAttack, T, get_criterion, raise_if_kwargs
from torch import Tensor

__all__ = ["GrowingAttack", "Perturb", "Target"]

# (model, images, criterion, size in (0, 1]) -> images of the same shape, perturbed by that much.
Perturb = Callable[[foolbox.Model, Tensor, foolbox.Criterion, float], Tensor]


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        model: takes images (N, C, H, W) within its bounds.
        images: (N, C, H, W).
        labels: the right classes (N,).
    """

    model: foolbox.Model
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, model: foolbox.Model, inputs: Any, criterion: Any) -> Target:
        """From the arguments of a foolbox attack's `run`.

        Raises:
            ValueError: if the criterion is not misclassification.
        """
        criterion = get_criterion(criterion)
        if not isinstance(criterion, foolbox.criteria.Misclassification):
            raise ValueError(f"This attack is untargeted: give it labels or Misclassification, not {criterion!r}.")
        return cls(model, eagerpy.astensor(inputs).raw, eagerpy.astensor(criterion.labels).raw)

    def fooled_by(self, perturbed: Tensor, which: Tensor) -> Tensor:
        """Whether each of the perturbed images (K, C, H, W), made from `images[which]`, is misclassified: (K,)."""
        if not len(which):
            return which.new_zeros(0, dtype=torch.bool)
        scores: Tensor = self.model(perturbed)
        return scores.argmax(1) != self.labels[which]

    @property
    def everything(self) -> Tensor:
        """The numbers of all images (N,)."""
        return torch.arange(len(self.images), device=self.images.device)


class GrowingAttack(MinimizationAttack):
    """Perturbs more and more until the image is misclassified, then narrows the size down by bisection.

    An image leaves the batch as soon as it is misclassified. Sizes run from 0 to 1 in equal steps; what a size means is
    up to `perturb`. Where no size succeeds the image is returned as it was.

    Args:
        perturb: perturbs images by a given size.
        steps: the number of sizes tried.
        halvings: how often the step in which an image was first misclassified is then halved.
    """

    distance = foolbox.distances.l2

    def __init__(self, perturb: Perturb, *, steps: int = 20, halvings: int = 5) -> None:
        self.perturb = perturb
        self.steps = steps
        self.halvings = halvings

    def run(
        self, model: foolbox.Model, inputs: T, criterion: Any, *, early_stop: float | None = None, **kwargs: Any
    ) -> T:
        """The perturbed images, of the inputs' shape and type. `early_stop` has no effect: sizes only grow."""
        raise_if_kwargs(kwargs)
        restore = eagerpy.astensor_(inputs)[1]
        search = _Search(Target.of(model, inputs, criterion), self.perturb)
        remaining = search.target.everything
        for low, high in pairwise(i / self.steps for i in range(self.steps + 1)):
            found, remaining = search.attempt(remaining, high)
            search.narrow(found, low, high, self.halvings)
        result: T = restore(eagerpy.astensor(search.result))
        return result


class _Search:
    """The smallest perturbations found so far."""

    def __init__(self, target: Target, perturb: Perturb) -> None:
        self.target = target
        self.perturb = perturb
        self.result = target.images.clone()

    def attempt(self, which: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """Perturb some images by a size; returns the numbers of those misclassified then, and of the others."""
        if not len(which):
            return which, which
        criterion = foolbox.Misclassification(self.target.labels[which])
        perturbed = self.perturb(self.target.model, self.target.images[which], criterion, size)
        fooled = self.target.fooled_by(perturbed, which)
        self.result[which[fooled]] = perturbed[fooled]
        return which[fooled], which[~fooled]

    def narrow(self, which: Tensor, low: float, high: float, halvings: int) -> None:
        """Bisect between a size that failed and one that succeeded on all of these images."""
        if not halvings or not len(which):
            return
        middle = (low + high) / 2
        smaller, larger = self.attempt(which, middle)
        self.narrow(smaller, low, middle, halvings - 1)
        self.narrow(larger, middle, high, halvings - 1)
