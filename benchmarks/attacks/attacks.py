"""The attacks as one table: the papers' ten (SPEC 6.2), then two that use gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import foolbox
import foolbox.attacks as fa
import torch
from foolbox.attacks.base import AttackWithDistance, FixedEpsilonAttack
from torch import Tensor

from td_compiler.benchmarks.attacks.pointwise import BatchedPointwiseAttack
from td_compiler.benchmarks.attacks.search import GrowingAttack, Perturb
from td_compiler.benchmarks.attacks.single_pixel import SinglePixelAttack

__all__ = ["ATTACKS", "AttackRow", "smallest_perturbations"]

L2 = foolbox.distances.l2


@dataclass(frozen=True)
class AttackRow:
    """One kind of attack.

    Attributes:
        kind: what it does to images, in the workshop paper's words.
        make: the attack, from the number of steps of its search.
        repeated: whether it is repeated; one without random numbers, or with a gradient to follow, would find the same.
    """

    kind: str
    make: Callable[[int], AttackWithDistance]
    repeated: bool = True


def _sized(attack: FixedEpsilonAttack, norm: Callable[[Tensor], float]) -> Perturb:
    """An attack of a given norm; size 1 stands for `norm(images)` where pixels run from 0 to 1."""

    def perturb(model: foolbox.Model, images: Tensor, criterion: foolbox.Criterion, size: float) -> Tensor:
        span = model.bounds.upper - model.bounds.lower
        perturbed: Tensor = attack.run(model, images, criterion, epsilon=size * norm(images) * span)
        return perturbed

    return perturb


def _blur(model: foolbox.Model, images: Tensor, criterion: foolbox.Criterion, size: float) -> Tensor:
    """Gaussian blur; size 1 is a standard deviation of the image's longer side, as in foolbox."""
    attack = fa.GaussianBlurAttack(distance=L2, steps=1, max_sigma=size * max(images.shape[2:]))
    blurred: Tensor = attack.run(model, images, criterion)
    return blurred


def _moved(degrees: float, pixels: float) -> Perturb:
    """Rotation and shift; at size 1 by up to so many degrees, and pixels down and to the right.

    The first combination of the two extremes and 0 of each that the model misclassifies.
    """

    def perturb(model: foolbox.Model, images: Tensor, criterion: foolbox.Criterion, size: float) -> Tensor:
        attack = fa.SpatialAttack(
            max_rotation=size * degrees,
            max_translation=size * pixels,
            num_rotations=3 if degrees else 1,
            num_translations=3,
        )
        moved: Tensor = attack.run(model, images, criterion)
        return moved

    return perturb


def _uniform_norm(images: Tensor) -> float:
    """The L2 norm of uniform noise in [-1, 1]: foolbox 2, which the papers used, goes up to noise this strong."""
    return math.sqrt(images[0].numel() / 3)


def _grey_norm(images: Tensor) -> float:
    """The L2 distance between a black or white image and mid-grey: no image is further from it."""
    return math.sqrt(images[0].numel()) / 2


def _whole_range(images: Tensor) -> float:
    return 1.0


def _growing(perturb: Perturb) -> Callable[[int], GrowingAttack]:
    return lambda steps: GrowingAttack(perturb, steps=steps)


# A search of 100 steps gives foolbox's attacks their default of 1000. Shifts and rotations are those of the defaults of
# foolbox 2, which the papers used: up to 5 pixels and 5 degrees.
ATTACKS: Mapping[str, AttackRow] = {
    "single pixel": AttackRow("correlated noise", lambda steps: SinglePixelAttack(distance=L2, max_pixels=10 * steps)),
    "salt and pepper": AttackRow("correlated noise", lambda steps: fa.SaltAndPepperNoiseAttack(steps=10 * steps)),
    "pointwise": AttackRow(
        "correlated noise",
        lambda steps: BatchedPointwiseAttack(
            fa.SaltAndPepperNoiseAttack(steps=10 * steps), distance=L2, halvings=5, max_passes=2
        ),
    ),
    "additive Gaussian": AttackRow(
        "uncorrelated noise", _growing(_sized(fa.L2AdditiveGaussianNoiseAttack(), _uniform_norm))
    ),
    "additive uniform": AttackRow(
        "uncorrelated noise", _growing(_sized(fa.L2AdditiveUniformNoiseAttack(), _uniform_norm))
    ),
    "blended uniform": AttackRow(
        "uncorrelated noise",
        lambda steps: fa.LinearSearchBlendedUniformNoiseAttack(distance=L2, directions=10 * steps, steps=10 * steps),
    ),
    "Gaussian blur": AttackRow("blur", _growing(_blur), repeated=False),
    "contrast reduction": AttackRow(
        "contrast", _growing(_sized(fa.L2ContrastReductionAttack(), _grey_norm)), repeated=False
    ),
    "rotations and shifts": AttackRow("spatial", _growing(_moved(degrees=5, pixels=5)), repeated=False),
    "shifts": AttackRow("spatial", _growing(_moved(degrees=0, pixels=5)), repeated=False),
    "FGSM": AttackRow("gradient", _growing(_sized(fa.LinfFastGradientAttack(), _whole_range)), repeated=False),
    "PGD": AttackRow(
        "gradient",
        _growing(_sized(fa.LinfProjectedGradientDescentAttack(steps=10, rel_stepsize=0.25), _whole_range)),
        repeated=False,
    ),
}


def smallest_perturbations(
    name: str, network: torch.nn.Module, images: Tensor, labels: Tensor, *, steps: int, repeats: int
) -> tuple[Tensor, Tensor]:
    """Attack images that the network classifies rightly; of several attempts the smallest perturbation counts.

    Args:
        name: of the attack, a key of `ATTACKS`.
        network: in eval mode; takes images in [0, 1].
        images: (N, C, H, W), all classified rightly.
        labels: (N,).
        steps: the number of steps of the attack's search.
        repeats: how often an attack with random numbers is repeated; torch's global generator draws them.

    Returns:
        The perturbed images (N, C, H, W), and for each whether it is misclassified (N,).
    """
    row = ATTACKS[name]
    attack = row.make(steps).repeat(repeats if row.repeated else 1)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LinearSearchBlended.* failed", UserWarning)  # counted as a failure below
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
        perturbed, _, fooled = attack(model, images, labels, epsilons=None)
    return perturbed, fooled
