"""Several attacks at one bound, of which the worst counts: what stands in for AutoAttack (Croce and Hein 2020).

AutoAttack is APGD with two losses, FAB and Square. No package of it is kept up: the one on PyPI brings 45 MB of
examples and saw its last release in 2024, torchattacks pins a release of requests of 2021. Foolbox's nearest are PGD
with restarts (cross entropy), FMN (Pintor et al. 2021, differences of scores, a successor of FAB) and DeepFool. It has
no Square, so a network that hides its gradients would look more robust here than under AutoAttack.
"""

from __future__ import annotations

import foolbox
import foolbox.attacks as fa
import torch
from foolbox.attacks.base import FixedEpsilonAttack, MinimizationAttack
from torch import Tensor

__all__ = ["PASSES", "withstands"]

_STEPS, _RESTARTS = 20, 3
PASSES = _RESTARTS * 3 * _STEPS + 3 * 2 * _STEPS + 50  # forward passes, a backward pass counting as two


def _attacks() -> list[FixedEpsilonAttack | MinimizationAttack]:
    pgd = fa.LinfProjectedGradientDescentAttack(steps=_STEPS, rel_stepsize=2.5 / _STEPS)
    return [
        fa.LinfDeepFoolAttack(steps=10, candidates=5),
        *(pgd for _ in range(_RESTARTS)),
        fa.LInfFMNAttack(steps=2 * _STEPS),
    ]


def withstands(network: torch.nn.Module, images: Tensor, labels: Tensor, bound: float) -> Tensor:
    """Which images no attack makes a network misclassify: (N,).

    Args:
        network: in eval mode; takes images in [0, 1].
        images: (N, C, H, W); torch's global generator draws where attacks start.
        labels: (N,).
        bound: the largest change of any value.
    """
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
    with torch.no_grad():
        standing = network(images).argmax(1) == labels
    for attack in _attacks():
        which = standing.nonzero()[:, 0]
        if not len(which):
            break
        _, clipped, _ = attack(model, images[which], labels[which], epsilons=bound)
        with torch.no_grad():  # as it is clipped to the bound, in the network itself
            change = (clipped - images[which]).clamp(-bound, bound)
            standing[which] = network((images[which] + change).clamp(0, 1)).argmax(1) == labels[which]
    return standing
