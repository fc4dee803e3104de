"""The pointwise attack of foolbox, at a fraction of its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import eagerpy
import foolbox
import torch
from foolbox.attacks.base import FlexibleDistanceMinimizationAttack, MinimizationAttack, T, raise_if_kwargs
from torch import Tensor

from td_compiler.benchmarks.attacks.search import Target

__all__ = ["BatchedPointwiseAttack"]


class BatchedPointwiseAttack(FlexibleDistanceMinimizationAttack):
    """Takes back, value by value, what another attack changed, as long as the image stays misclassified.

    The algorithm of foolbox's `PointwiseAttack` (Schott et al. 2019): first single values are reset to the original's,
    in random order, until none can be; then each that is left is moved towards the original's by bisection, until none
    moves. Foolbox's runs the whole batch until its slowest image is done, and demands that the first attack succeeds on
    every image; here only images with values left to try stay in the batch, resets are first tried on several values at
    once, and where the first attack failed the image is left as that made it.

    Args:
        init_attack: the attack to start from; salt-and-pepper noise by default.
        distance: the distance by which foolbox judges perturbations.
        blocks: resets are tried on so many values at once, before they are tried on single ones.
        halvings: the steps of a bisection.
        max_passes: how often at most all values are bisected.
    """

    def __init__(
        self,
        init_attack: MinimizationAttack | None = None,
        *,
        distance: foolbox.Distance | None = None,
        blocks: Sequence[int] = (64, 16, 4),
        halvings: int = 10,
        max_passes: int = 100,
    ) -> None:
        super().__init__(distance=distance)
        self.init_attack = init_attack or foolbox.attacks.SaltAndPepperNoiseAttack()
        self.blocks = tuple(blocks)
        self.halvings = halvings
        self.max_passes = max_passes

    def run(
        self, model: foolbox.Model, inputs: T, criterion: Any, *, early_stop: float | None = None, **kwargs: Any
    ) -> T:
        """The perturbed images, of the inputs' shape and type. `early_stop` has no effect."""
        raise_if_kwargs(kwargs)
        restore = eagerpy.astensor_(inputs)[1]
        target = Target.of(model, inputs, criterion)
        start = self.init_attack.run(model, target.images, foolbox.Misclassification(target.labels))
        reduction = _Reduction(target, start)
        improvable = target.everything[target.fooled_by(start, target.everything)]
        for block in self.blocks:
            reduction.visit(improvable, reduction.reset, block)
        remaining = improvable
        while len(remaining):
            remaining = reduction.visit(remaining, reduction.reset)
        for _ in range(self.max_passes):
            improvable = reduction.visit(
                improvable, lambda rows, columns: reduction.bisect(rows, columns, self.halvings)
            )
        result: T = restore(eagerpy.astensor(reduction.values.view_as(target.images)))
        return result


class _Reduction:
    """Adversarial images on their way back to the originals, as rows of values (N, C * H * W)."""

    def __init__(self, target: Target, start: Tensor) -> None:
        self.target = target
        self.originals = target.images.flatten(1)
        self.values = start.flatten(1).clone()

    def visit(self, which: Tensor, improve: Callable[[Tensor, Tensor], Tensor], block: int = 1) -> Tensor:
        """Call `improve(rows, columns)` on all changed values of some images, in random order.

        Args:
            which: the numbers of the images.
            improve: brings `values[rows, columns]` nearer to the originals, for rows (K,) and columns (K, block), and
                tells in which rows it did (K,).
            block: how many values of an image are brought nearer at once.

        Returns:
            The numbers of the images that were improved at least once.
        """
        if not len(which):
            return which
        changed = self.values[which] != self.originals[which]
        counts = changed.sum(1)
        order = (torch.rand_like(self.values[which]) + ~changed).argsort(1)  # changed values first, in random order
        improved = torch.zeros_like(which, dtype=torch.bool)
        for first in range(0, int(counts.max()), block):
            waiting = counts > first
            improved[waiting] |= improve(which[waiting], order[waiting, first : first + block])
        return which[improved]

    def reset(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Set a block of values in each row back to the originals where the image stays misclassified; tells where."""
        return self._try(rows, columns, self.originals[rows].gather(1, columns))

    def bisect(self, rows: Tensor, columns: Tensor, halvings: int) -> Tensor:
        """Move a block of values in each row towards the originals as far as the image stays misclassified."""
        near = self.originals[rows].gather(1, columns)
        improved = self._try(rows, columns, near)
        for _ in range(halvings):
            middle = (self.values[rows].gather(1, columns) + near) / 2
            moved = self._try(rows, columns, middle)
            near = torch.where(moved[:, None], near, middle)
            improved |= moved
        return improved

    def _try(self, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """Set values where they are new ones and the image stays misclassified; tells where."""
        perturbed = self.values[rows].scatter(1, columns, values)
        accepted = self.target.fooled_by(perturbed.view(-1, *self.target.images.shape[1:]), rows)
        accepted &= (perturbed != self.values[rows]).any(1)
        self.values[rows[accepted]] = perturbed[accepted]
        return accepted
