"""The jobs of the robustness experiment: one network under one attack, or under all corruptions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.lab.machine import Machine
from benchmarks.training.training import Training, trained

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.training.training import Normalised

__all__ = ["AttackJob", "CorruptionJob"]


@dataclass(frozen=True)
class AttackJob:
    """A job: the smallest perturbations of one attack that fool one network (SPEC 6.2).

    Attributes:
        training: how the network is trained; its run seeds the attack, too.
        attack: a key of `benchmarks.attacks.attacks.ATTACKS`.
        images: how many test images are attacked; None for all.
        steps: the number of steps of the attack's search.
        repeats: how often an attack with random numbers is repeated; the smallest perturbation counts.
        batch_size: how many images are attacked at once; the random numbers depend on it.
    """

    experiment: ClassVar[str] = "robustness"
    revision: ClassVar[int] = 1

    training: Training
    attack: str
    images: int | None = None
    steps: int = 20
    repeats: int = 3
    batch_size: int = 250

    @property
    def data(self) -> str:
        return self.training.data

    @property
    def name(self) -> str:
        return f"robustness {self.training.name}, {self.attack}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """Images, accuracy without attack, and what the attack did.

        Returns:
            `images`: how many there are; `right`: how many are classified rightly, and so attacked; `l2`, `linf`: the
            distances of the perturbations of those that were fooled, sorted; for a top-down network also `scales`: how
            many images are right when only these scales see the perturbed ones.
        """
        import torch

        from td_compiler.network.base import TopDownNet

        network = trained(self.training, machine).network
        images, labels = _test_images(self.data, self.images, machine)
        torch.manual_seed(self.training.run)
        distances: dict[str, list[float]] = {"l2": [], "linf": []}
        right, still = 0, Counter[str]()
        for batch, truth in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
            attacked = _attack(self, network, batch.float() / 255, truth)
            right += len(attacked.clean)
            for norm, found in attacked.distances().items():
                distances[norm] += found
            if isinstance(network.net, TopDownNet):
                still.update(attacked.still_right(network))  # += would drop zeros
        figures = {"images": len(images), "right": right, **{norm: sorted(each) for norm, each in distances.items()}}
        return {**figures, "scales": dict(still)} if still else figures


@dataclass(frozen=True)
class _Attacked:
    """A batch of images that the network classifies rightly, and what an attack made of them.

    Attributes:
        clean, perturbed: (N, C, H, W); where the attack failed they are the same.
        labels: (N,).
        fooled: whether each is misclassified (N,).
    """

    clean: Tensor
    perturbed: Tensor
    labels: Tensor
    fooled: Tensor

    def distances(self) -> dict[str, list[float]]:
        """L2 and L-infinity distances of the perturbations that succeeded."""
        change = (self.perturbed - self.clean)[self.fooled].flatten(1).double()
        found = {"l2": change.norm(dim=1), "linf": change.abs().amax(1) if len(change) else change.sum(1)}
        return {norm: [round(each, 4) for each in values.tolist()] for norm, values in found.items()}

    def still_right(self, network: Normalised) -> dict[str, int]:
        from benchmarks.experiments.robustness.vulnerability import still_right

        return still_right(network, self.clean, self.perturbed, self.labels)


def _attack(job: AttackJob, network: Normalised, images: Tensor, labels: Tensor) -> _Attacked:
    """Attack those images (N, C, H, W) that are classified rightly."""
    import torch

    from benchmarks.attacks.attacks import smallest_perturbations

    with torch.no_grad():
        right = network(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    if not len(images):
        return _Attacked(images, images, labels, right[right])
    perturbed, fooled = smallest_perturbations(
        job.attack, network, images, labels, steps=job.steps, repeats=job.repeats
    )
    return _Attacked(images, torch.where(fooled[:, None, None, None], perturbed, images), labels, fooled)


@dataclass(frozen=True)
class CorruptionJob:
    """A job: one network's errors under common corruptions (Hendrycks and Dietterich 2019).

    Attributes:
        training: how the network is trained; its run seeds the corruptions, too.
        images: how many test images are used; None for all.
        batch_size: how many images are corrupted at once; the random numbers depend on it.
    """

    experiment: ClassVar[str] = "robustness"
    revision: ClassVar[int] = 1

    training: Training
    images: int | None = None
    batch_size: int = 250

    @property
    def data(self) -> str:
        return self.training.data

    @property
    def name(self) -> str:
        return f"robustness {self.training.name}, corruptions"

    def run(self, machine: Machine) -> dict[str, Any]:
        """`images`, the `clean` error from 0 to 1, and for every corruption the five severities' `errors`."""
        import torch

        from benchmarks.attacks.corruptions import CORRUPTIONS, SEVERITIES

        network = trained(self.training, machine).network
        images, labels = _test_images(self.data, self.images, machine)
        torch.manual_seed(self.training.run)
        wrong = {name: [0] * len(SEVERITIES) for name in CORRUPTIONS}
        clean = 0
        for batch, truth in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
            pixels = batch.float() / 255
            clean += _errors(network, pixels, truth)
            for name, corrupt in CORRUPTIONS.items():
                for place, severity in enumerate(SEVERITIES):
                    wrong[name][place] += _errors(network, corrupt(pixels, severity), truth)
        count = len(images)
        errors = {name: [each / count for each in counts] for name, counts in wrong.items()}
        return {"images": count, "clean": clean / count, "errors": errors}


def _errors(network: Normalised, images: Tensor, labels: Tensor) -> int:
    import torch

    with torch.no_grad():
        return int((network(images).argmax(1) != labels).sum())


def _test_images(data: str, limit: int | None, machine: Machine) -> tuple[Tensor, Tensor]:
    """Test images (N, C, H, W), uint8, and labels (N,) on the machine's device."""
    from benchmarks.data.datasets import load

    test = load(data, machine, train=False, limit=limit).to(machine.torch_device)
    return test.images, test.labels
