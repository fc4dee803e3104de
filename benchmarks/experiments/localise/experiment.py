"""Weakly supervised localisation: how well Grad-CAM covers the object (SPEC 6.3b; paper Exp. 3.b).

Images are bright objects on black ground, so the object is where pixels are above a threshold. The heat map of the
image's class, grown to the image, cut off below 0 and scaled to [0, 1], is cut at the same threshold. Only images that
both networks classify rightly count. Pixels of all images together give precision, recall and IoU, as in the paper;
the mean of the images' own IoU is given beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from benchmarks.data.images import DataError, as_float
from benchmarks.experiments.localise.section import section
from benchmarks.lab.experiment import Experiment
from benchmarks.lab.machine import Machine
from benchmarks.lab.options import Setup, run_command
from benchmarks.training.networks import NetworkSpec
from benchmarks.training.training import Training, planned, trained

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.experiments.explain.heatmaps import Explainer

__all__ = ["EXPERIMENT", "Localise", "Overlap", "main", "overlap"]

_BATCH = 250


@dataclass(frozen=True)
class Overlap:
    """How well heat maps cover objects.

    Attributes:
        precision: the share of the heat maps' pixels that lie on objects.
        recall: the share of the objects' pixels that heat maps cover.
        iou: intersection over union of all images' pixels together.
        image_iou: the mean of every image's own.
    """

    precision: float
    recall: float
    iou: float
    image_iou: float


def overlap(heat_maps: Tensor, objects: Tensor, threshold: float) -> Overlap:
    """Compare heat maps (N, 1, H, W) in [0, 1], cut at a threshold, with objects (N, 1, H, W) of booleans.

    A ratio of 0 to 0 counts as 0, as does everything where there is no image.
    """
    if not len(objects):
        return Overlap(0.0, 0.0, 0.0, 0.0)
    found = heat_maps > threshold
    kinds = (found & objects, found & ~objects, objects & ~found)
    right, false, missed = (kind.flatten(1).sum(1).double() for kind in kinds)  # pixels, by image
    each = right / (right + false + missed).clamp(min=1)
    hits, wrong, lost = (float(count.sum()) for count in (right, false, missed))
    return Overlap(
        precision=hits / max(hits + wrong, 1),
        recall=hits / max(hits + lost, 1),
        iou=hits / max(hits + wrong + lost, 1),
        image_iou=float(each.mean()),
    )


@dataclass(frozen=True)
class Localise:
    """A job: a bottom-up network beside one of its top-down networks, trained alike.

    Attributes:
        bottom_up, top_down: how they are trained; on how many test images both are compared is the first one's.
        threshold: of objects and heat maps.
    """

    experiment: ClassVar[str] = "localise"
    revision: ClassVar[int] = 1

    bottom_up: Training
    top_down: Training
    threshold: float = 0.2

    @property
    def data(self) -> str:
        return self.bottom_up.data

    @property
    def name(self) -> str:
        return f"localise {self.top_down.name}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """For `last` (the last map before the head's pooling) and `stage` (the last stage's) the networks' `Overlap`.

        Raises:
            DataError: if the images are not grey.
        """
        import torch

        from benchmarks.data.datasets import load
        from benchmarks.experiments.explain.heatmaps import Explainer

        test = load(self.data, machine, train=False, limit=self.bottom_up.test_images).to(machine.torch_device)
        if test.images.shape[1] != 1:
            raise DataError(f"{self.data}: localisation is measured on grey images of bright objects on black ground.")
        networks = {side: trained(getattr(self, side), machine) for side in ("bottom_up", "top_down")}
        explainers = {side: Explainer.of(each.network, test.input_size) for side, each in networks.items()}
        images = as_float(test.images)
        right = torch.stack([_classified(e, images) == test.labels for e in explainers.values()]).all(0)
        images, labels = images[right], test.labels[right]
        objects = images > self.threshold
        return {
            "images": len(images),
            "tested": len(test),
            "accuracy": {side: each.accuracy for side, each in networks.items()},
            **{
                side: {
                    place: asdict(overlap(_heat_maps(explainer, images, labels, tap), objects, self.threshold))
                    for place, tap in _places(explainer).items()
                }
                for side, explainer in explainers.items()
            },
        }


def _places(explainer: Explainer) -> dict[str, str]:
    """Where heat maps are taken: place -> tap."""
    return {"last": explainer.taps[-1], "stage": [tap for tap in explainer.taps if tap.startswith("stage")][-1]}


def _classified(explainer: Explainer, images: Tensor) -> Tensor:
    """The class (N,) that the network finds in images (N, C, H, W)."""
    import torch

    return torch.cat([explainer.scores(batch).argmax(1) for batch in images.split(_BATCH)])


def _heat_maps(explainer: Explainer, images: Tensor, classes: Tensor, tap: str) -> Tensor:
    """Heat maps (N, 1, H, W) in [0, 1] for images (N, C, H, W) and their classes (N,)."""
    import torch

    from benchmarks.experiments.explain.heatmaps import at_image_size, to_unit

    if not len(images):
        return images
    maps = [
        to_unit(at_image_size(explainer.grad_cam(batch, labels, tap), images.shape))
        for batch, labels in zip(images.split(_BATCH), classes.split(_BATCH), strict=True)
    ]
    return torch.cat(maps)


EXPERIMENT = Experiment("localise", section)


_DATA, _NETWORKS, _ARRANGEMENTS = ["mnist", "fashion-mnist"], ["nin_light"], ["mirror"]


def _localise(
    setup: Setup,
    networks: Annotated[
        list[str], typer.Argument(help="zoo:NAME, torchvision:NAME, timm:NAME or FILE.py.")
    ] = _NETWORKS,
    data: Annotated[list[str], typer.Option(help="Grey images of bright objects on black ground.")] = _DATA,
    arrangement: Annotated[list[str], typer.Option(help="Top-down arrangements beside BU.")] = _ARRANGEMENTS,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Of objects and heat maps.")] = 0.2,
) -> None:
    """Measure precision, recall and IoU of Grad-CAM against bright objects, BU beside TD (paper, Exp. 3.b)."""
    jobs = [
        Localise(
            planned(setup.profile, NetworkSpec(source), each, run),
            planned(setup.profile, NetworkSpec(source, arrangement=way), each, run),
            threshold,
        )
        for each in data
        for source in networks
        for way in arrangement
        for run in setup.runs
    ]
    EXPERIMENT.run(jobs, setup)


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the command line; returns the exit status."""
    return run_command(_localise, arguments, prog)
