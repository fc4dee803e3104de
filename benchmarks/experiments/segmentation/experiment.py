"""Segmentation of the toy task (thesis exp 3, SPEC 6.5): what is measured of each network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from td_compiler.benchmarks.data.datasets import Images, load
from td_compiler.benchmarks.data.images import as_float
from td_compiler.benchmarks.data.meshes import intersection_over_union
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.training.training import Training, answers, trained

__all__ = ["SegmentationJob", "overlaps"]

_EXAMPLES = 3


@dataclass(frozen=True)
class SegmentationJob:
    """Train one network, measure its intersection over union on the test images.

    Attributes:
        training: of a network of `networks`, for the task `segmentation`.
    """

    experiment: ClassVar[str] = "segmentation"
    revision: ClassVar[int] = 2

    training: Training

    @property
    def data(self) -> str:
        """The data set."""
        return self.training.data

    @property
    def name(self) -> str:
        """One line for progress and logs."""
        return self.training.name

    def run(self, machine: Machine) -> dict[str, Any]:
        """What the network costs, how well it does, and the first test images as it sees them.

        Returns:
            `overlaps`: (N, K, 2), the pixels of each image and class but the ignored one that are the class both in
            truth and as found, and in truth or as found, where truth is not `ignore`; `mean_iou` and `iou` by class.
        """
        found = trained(self.training, machine)
        test = load(self.data, machine, train=False, limit=self.training.test_images)
        pixels = answers(found.network, test, self.training.recipe.batch_size)
        mean, each = (intersection_over_union(len(test.classes), average) for average in ("macro", "none"))
        by_class = [float(value) for value in each(pixels, test.labels)]
        return {
            "mean_iou": float(mean(pixels, test.labels)),
            "iou": dict(zip(test.classes[:-1], by_class[:-1], strict=True)),
            "overlaps": packed(overlaps(pixels, test.labels, len(test.classes))),
            "parameters": sum(parameter.numel() for parameter in found.network.parameters()),
            "seconds_per_epoch": found.seconds_per_epoch,
            "peak_memory": found.peak_memory,
            "train_images": found.train_images,
            "test_images": len(test),
            "examples": _examples(pixels, test),
        }


def overlaps(found: Tensor, true: Tensor, classes: int) -> Tensor:
    """Pixels of intersection and union (N, classes - 1, 2) of maps of classes (N, H, W); the last class is ignored."""
    counted = true != classes - 1
    pairs = [((found == k) & counted, (true == k) & counted) for k in range(classes - 1)]
    return torch.stack([torch.stack([(a & b).sum((1, 2)), (a | b).sum((1, 2))], 1) for a, b in pairs], 1)


def _examples(found: Tensor, data: Images) -> list[dict[str, Any]]:
    """The first test images, the classes of their pixels and those that were found, packed."""
    images = (255 * as_float(data.images[:_EXAMPLES])).round().to(torch.uint8)
    triples = zip(images, data.labels, found, strict=False)
    return [{"image": packed(i), "true": packed(t), "found": packed(f)} for i, t, f in triples]
