"""The jobs of the robustness experiment: one network under one attack, or under all corruptions."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, no_grad

from td_compiler.benchmarks.data.images import as_float
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.training.training import Normalised, Trained, Training, trained

__all__ = ["AttackJob", "CorruptionJob", "network_of"]


@functools.lru_cache(maxsize=2)
def network_of(training: Training, machine: Machine) -> Trained:
    """As `trained`, once for all jobs that measure a network in a row; nobody changes it."""
    return trained(training, machine)


@dataclass(frozen=True)
class AttackJob:
    """A job: the smallest perturbations of one attack that fool one network (SPEC 6.2).

    Attributes:
        training: how the network is trained; its run seeds the attack, too.
        attack: a key of `td_compiler.benchmarks.attacks.attacks.ATTACKS`.
        images: how many test images are attacked; None for all.
        steps: the number of steps of the attack's search.
        repeats: how often an attack with random numbers is repeated; the smallest perturbation counts.
        at_once: how many images are attacked at once; the random numbers depend on it.
    """

    experiment: ClassVar[str] = "robustness"
    revision: ClassVar[int] = 2

    training: Training
    attack: str
    images: int | None = None
    steps: int = 20
    repeats: int = 3
    at_once: int = 250

    @property
    def data(self) -> str:
        return self.training.data

    @property
    def name(self) -> str:
        return f"robustness {self.training.name}, {self.attack}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """Images, what is right without attack, and what the attack did.

        Returns:
            `right`: whether each image is classified rightly, and so attacked; `l2`, `linf`: the distance of each
            image's perturbation, None where none was found or looked for; for a top-down network also `scales`: how
            many images are right when only these scales see the perturbed ones.
        """
        import torch

        from td_compiler.benchmarks.experiments.robustness.vulnerability import still_right
        from td_compiler.network.base import TopDownNet

        found = network_of(self.training, machine)
        images, labels = _test_images(self.data, self.images, machine)
        torch.manual_seed(self.training.run)
        right, still = [], Counter[str]()
        distances: dict[str, list[float | None]] = {"l2": [], "linf": []}
        for batch, truth in zip(images.split(self.at_once), labels.split(self.at_once), strict=True):
            clean = as_float(batch)
            whether = answered(found.network, clean) == truth
            perturbed, fooled = _attack(self, found.network, clean, truth, whether)
            change = (perturbed - clean).flatten(1).double()
            for norm, each in {"l2": change.norm(dim=1), "linf": change.abs().amax(1)}.items():
                pairs = zip(each.tolist(), fooled.tolist(), strict=True)
                distances[norm] += [round(distance, 4) if success else None for distance, success in pairs]
            right.append(whether.cpu())
            if isinstance(found.network.net, TopDownNet):
                still.update(still_right(found.network, clean[whether], perturbed[whether], truth[whether]))
        figures = {"train_images": found.train_images, "test_images": len(images), "right": packed(torch.cat(right))}
        return {**figures, **distances, **({"scales": dict(still)} if still else {})}


@no_grad()
def answered(network: Normalised, images: Tensor) -> Tensor:
    """The classes (N,) that a network finds in images (N, C, H, W)."""
    return network(images).argmax(1)


def _attack(
    job: AttackJob, network: Normalised, images: Tensor, labels: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """Attack some of the images (N, C, H, W): they as perturbed, the same where that failed, and where it did not."""
    import torch

    from td_compiler.benchmarks.attacks.attacks import smallest_perturbations

    result, success = images.clone(), torch.zeros_like(which)
    if which.any():
        perturbed, fooled = smallest_perturbations(
            job.attack, network, images[which], labels[which], steps=job.steps, repeats=job.repeats
        )
        result[which] = torch.where(fooled[:, None, None, None], perturbed, images[which])
        success[which] = fooled
    return result, success


@dataclass(frozen=True)
class CorruptionJob:
    """A job: one network's errors under common corruptions (Hendrycks and Dietterich 2019).

    Attributes:
        training: how the network is trained; its run seeds the corruptions, too.
        images: how many test images are used; None for all.
        at_once: how many images are corrupted at once; the random numbers depend on it.
    """

    experiment: ClassVar[str] = "robustness"
    revision: ClassVar[int] = 4

    training: Training
    images: int | None = None
    at_once: int = 250

    @property
    def data(self) -> str:
        return self.training.data

    @property
    def name(self) -> str:
        return f"robustness {self.training.name}, corruptions"

    def run(self, machine: Machine) -> dict[str, Any]:
        """`right`: as of attacks; and for every corruption at five severities the share of `errors`, from 0 to 1.

        `wrong` (N, corruptions) is at how many of the severities each image is misclassified.
        """
        import torch

        from td_compiler.benchmarks.attacks.corruptions import CORRUPTIONS, SEVERITIES

        found = network_of(self.training, machine)
        images, labels = _test_images(self.data, self.images, machine)
        torch.manual_seed(self.training.run)
        right, wrong = [], []
        for batch, truth in zip(images.split(self.at_once), labels.split(self.at_once), strict=True):
            pixels = as_float(batch)
            right.append((answered(found.network, pixels) == truth).cpu())
            answers = [
                torch.stack([answered(found.network, corrupt(pixels, severity)) for severity in SEVERITIES])
                for corrupt in CORRUPTIONS.values()
            ]
            wrong.append((torch.stack(answers) != truth).cpu())
        whether, failed = torch.cat(right), torch.cat(wrong, 2)  # (corruptions, severities, N)
        shares = failed.double().mean(2).tolist()
        return {
            "train_images": found.train_images,
            "test_images": len(images),
            "right": packed(whether),
            "clean": 1 - float(whether.double().mean()),
            "errors": dict(zip(CORRUPTIONS, shares, strict=True)),
            "wrong": packed(failed.sum(1).T),
        }


def _test_images(data: str, limit: int | None, machine: Machine) -> tuple[Tensor, Tensor]:
    """Test images (N, C, H, W), uint8, and labels (N,) on the machine's device."""
    from td_compiler.benchmarks.data.datasets import load

    test = load(data, machine, train=False, limit=limit).to(machine.torch_device)
    return test.images, test.labels
