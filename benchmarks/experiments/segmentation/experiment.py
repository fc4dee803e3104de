"""Segmentation of the toy task (thesis exp 3, SPEC 6.5): what is measured of each network."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data.datasets import Images, load
from benchmarks.data.images import as_float
from benchmarks.data.meshes import intersection_over_union
from benchmarks.experiments.segmentation.networks import builder, spec_of
from benchmarks.lab.machine import Machine
from benchmarks.training.batches import Batches
from benchmarks.training.recipes import Profile
from benchmarks.training.training import Training, planned, trained

__all__ = ["SegmentationJob", "segmentation_jobs", "unpacked"]

_EXAMPLES = 3


@dataclass(frozen=True)
class SegmentationJob:
    """Train one network, measure its intersection over union on the test images.

    Attributes:
        training: of a network of `benchmarks.experiments.segmentation.networks`, for the task `segmentation`.
    """

    experiment: ClassVar[str] = "segmentation"
    revision: ClassVar[int] = 1

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
        """Mean and classes' intersection over union, what the network costs, the first test images as it sees them."""
        result = trained(self.training, machine, build=builder(self.training.network))
        test = load(self.data, machine, train=False, limit=self.training.test_images)
        found = _classes_of_pixels(result.network, test, machine, self.training.recipe.batch_size)
        return {
            **_scores(found, test),
            "parameters": sum(parameter.numel() for parameter in result.network.parameters()),
            "seconds_per_epoch": result.seconds_per_epoch,
            "peak_memory": result.peak_memory,
            "examples": _examples(found, test),
        }


def segmentation_jobs(
    networks: Sequence[str],
    data: str,
    width: int,
    profile: Profile,
    runs: Sequence[int],
    settings: Sequence[str] = (),
) -> list[SegmentationJob]:
    """A job for every network and run.

    Args:
        networks: keys of `benchmarks.experiments.segmentation.networks.NETWORKS`.
        data: a data set with a class for every pixel.
        width: the filters of the finest stage.
        profile: how many images and epochs.
        runs: the seeds.
        settings: `NAME=VALUE` in place of the recipe's.

    Raises:
        ConversionError: if there is no such network.
        ValueError: if the recipe has no such setting.
    """
    specs = [spec_of(name, width) for name in networks]
    return [
        SegmentationJob(planned(profile, spec, data, run, settings=settings, task="segmentation"))
        for run in runs
        for spec in specs
    ]


@torch.no_grad()
def _classes_of_pixels(network: nn.Module, data: Images, machine: Machine, batch_size: int) -> Tensor:
    """The class (N, H, W) that the network gives each pixel."""
    batches = Batches(data, torch.arange(len(data)).split(batch_size))
    return torch.cat([network(as_float(images.to(machine.torch_device))).argmax(1).cpu() for images, _ in batches])


def _scores(found: Tensor, data: Images) -> dict[str, Any]:
    """Mean IoU, and every class's but that of pixels to be ignored."""
    mean, each = (intersection_over_union(len(data.classes), average) for average in ("macro", "none"))
    by_class = [float(value) for value in each(found, data.labels)]
    return {
        "mean_iou": float(mean(found, data.labels)),
        "iou": dict(zip(data.classes[:-1], by_class[:-1], strict=True)),
    }


def _examples(found: Tensor, data: Images) -> list[dict[str, Any]]:
    """The first test images, the classes of their pixels and those that were found, packed."""
    images = (255 * as_float(data.images[:_EXAMPLES])).round().to(torch.uint8)
    return [
        {
            "shape": list(image.shape),
            "image": _packed(image),
            "true": _packed(true),
            "found": _packed(pixels),
        }
        for image, true, pixels in zip(images, data.labels, found, strict=False)
    ]


def _packed(values: Tensor) -> str:
    """Numbers up to 255 as text."""
    return base64.b64encode(zlib.compress(values.to(torch.uint8).numpy().tobytes(), 9)).decode()


def unpacked(text: str, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What was packed."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)
