"""Weakly supervised localisation: how well Grad-CAM covers the object (SPEC 6.3b, 10.5; paper Exp. 3.b).

Images are bright objects on black ground, so the object is where pixels are above a threshold. The heat map of the
image's class, grown to the image, cut off below 0 and scaled to [0, 1], is cut at the same threshold: as it is (the
thesis), or after its mean was taken away (the authors' code). Only images that both networks classify rightly count.
Beside the networks stand what knows nothing of the image: the whole image, a blob in its middle, and the same networks
with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import typer
from torch import Tensor

from td_compiler.benchmarks.data.datasets import load
from td_compiler.benchmarks.data.images import DataError, as_float
from td_compiler.benchmarks.experiments.heatmaps.explainer import Explainer, at_image_size
from td_compiler.benchmarks.experiments.heatmaps.tables import FORMS, section
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.options import Networks, Setup, run_command
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.training import Training, answers, trained, untrained
from td_compiler.report.heat_maps import to_unit

__all__ = ["EXPERIMENT", "Localise", "blob", "covered", "main"]

_BATCH = 250


def covered(heat_maps: Tensor, objects: Tensor, threshold: float) -> Tensor:
    """Pixels of heat maps (N, 1, H, W) in [0, 1] above a threshold: (N, 2), those on the object, and all."""
    found = heat_maps > threshold
    return torch.stack([(found & objects).flatten(1).sum(1), found.flatten(1).sum(1)], 1)


def blob(size: Sequence[int]) -> Tensor:
    """A heat map (1, 1, H, W) that is a Gaussian in the middle, a quarter of each side wide."""
    along, across = (torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (side / 4)) ** 2) for side in size[-2:])
    return (along[:, None] * across)[None, None]


@dataclass(frozen=True)
class Localise:
    """A job: a bottom-up network beside one of its top-down networks, trained alike.

    Attributes:
        training: of the top-down network; on how many test images both are compared is its number.
        bottom_up: of the other.
        threshold: of objects and heat maps.
    """

    experiment: ClassVar[str] = "localise"
    revision: ClassVar[int] = 2

    training: Training
    bottom_up: Training
    threshold: float = 0.2

    @property
    def data(self) -> str:
        return self.training.data

    @property
    def name(self) -> str:
        return f"localise {self.training.name}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """What heat maps cover, image by image; 0 where an image does not count.

        Returns:
            `right`: for `bottom_up` and `top_down` whether each test image is classified rightly; `objects` (N,): the
            pixels of the object; `maps`: by whose heat map (the two, each `random`, too; `whole image`, `blob`), where
            (`last`: the map that the head pools; `stage`: the last stage's) and form what `covered` counts.

        Raises:
            DataError: if the images are not grey.
        """
        test = load(self.data, machine, train=False, limit=self.training.test_images).to(machine.torch_device)
        if test.images.shape[1] != 1:
            raise DataError(f"{self.data}: localisation is measured on grey images of bright objects on black ground.")
        plans = {"bottom_up": self.bottom_up, "top_down": self.training}
        networks = {who: trained(plan, machine) for who, plan in plans.items()}
        right = {who: answers(each.network, test) == test.labels.cpu() for who, each in networks.items()}
        both = torch.stack(list(right.values())).all(0).to(machine.torch_device)
        images, labels = as_float(test.images[both]), test.labels[both]
        objects = images > self.threshold

        def counted(maps: Tensor) -> dict[str, Any]:
            found = torch.zeros(len(test), 2, dtype=torch.long)
            found[both.cpu()] = covered(maps, objects, self.threshold).cpu()
            return packed(found)

        maps: dict[str, Any] = {
            "whole image": {"last": {form: counted(torch.ones_like(images)) for form in FORMS}},
            "blob": {"last": {form: counted(blob(images.shape).expand_as(images).to(images)) for form in FORMS}},
        }
        for who, plan in plans.items():
            random = untrained(plan, machine).to(machine.torch_device).eval()
            for name, network in ((who, networks[who].network), (f"{who}, random", random)):
                explainer = Explainer.of(network, test.input_size)
                maps[name] = {
                    place: {form: counted(heat) for form, heat in _heat_maps(explainer, images, labels, tap).items()}
                    for place, tap in _places(explainer).items()
                }
        sizes = torch.zeros(len(test), dtype=torch.long)
        sizes[both.cpu()] = objects.flatten(1).sum(1).cpu()
        return {
            "train_images": networks["top_down"].train_images,
            "test_images": len(test),
            "images": int(both.sum()),
            "right": {who: packed(each) for who, each in right.items()},
            "objects": packed(sizes),
            "maps": maps,
        }


def _places(explainer: Explainer) -> dict[str, str]:
    """Where heat maps are taken: place -> tap."""
    return {"last": explainer.taps[-1], "stage": [tap for tap in explainer.taps if tap.startswith("stage")][-1]}


def _heat_maps(explainer: Explainer, images: Tensor, classes: Tensor, tap: str) -> dict[str, Tensor]:
    """By form, heat maps (N, 1, H, W) in [0, 1] for images (N, C, H, W) and their classes (N,)."""
    if not len(images):
        return dict.fromkeys(FORMS, images)
    pairs = zip(images.split(_BATCH), classes.split(_BATCH), strict=True)
    native = torch.cat([explainer.grad_cam(batch, labels, tap) for batch, labels in pairs])
    without_mean = native - native.mean((2, 3), keepdim=True)
    return {
        form: to_unit(at_image_size(each, images.shape))
        for form, each in zip(FORMS, (native, without_mean), strict=True)
    }


EXPERIMENT = Experiment("localise", section)


_DATA, _NETWORKS, _ARRANGEMENTS = ["mnist", "fashion-mnist"], ["nin_light"], ["mirror"]


def _localise(
    setup: Setup,
    networks: Networks = _NETWORKS,
    data: Annotated[list[str], typer.Option(help="Grey images of bright objects on black ground.")] = _DATA,
    arrangement: Annotated[list[str], typer.Option(help="Top-down arrangements beside BU.")] = _ARRANGEMENTS,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Of objects and heat maps.")] = 0.2,
) -> None:
    """Measure precision, recall and IoU of Grad-CAM against bright objects, BU beside TD (paper, Exp. 3.b)."""
    jobs = [
        Localise(setup.plan(NetworkSpec(source, way), each, run), setup.plan(NetworkSpec(source), each, run), threshold)
        for each in data
        for source in networks
        for way in arrangement
        for run in setup.runs
    ]
    EXPERIMENT.run(jobs, setup)


main = partial(run_command, _localise)
