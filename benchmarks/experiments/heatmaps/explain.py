"""Where networks look: Grad-CAM by stage, BU beside TD, saliency and guided backpropagation (SPEC 6.3a; Exp. 3.a)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from td_compiler.benchmarks.data.images import DataError, Images, as_float
from td_compiler.benchmarks.data.photos import UNKNOWN
from td_compiler.benchmarks.experiments.heatmaps.figures import section
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.files import checksum
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.options import Networks, Setup, run_command
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.training import Training, trained

if TYPE_CHECKING:
    from torch import Tensor, nn

    from td_compiler.benchmarks.experiments.heatmaps.explainer import Explainer

__all__ = ["EXPERIMENT", "Explain", "Given", "encode", "main"]

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Given:
    """A network that is not trained here.

    Attributes:
        network: what it is.
        input_size: (C, H, W).
        num_classes: the number of its scores.
        weights: a .safetensors file with its state dict; "" leaves it untrained.
        seed: of an untrained network's weights.
    """

    network: NetworkSpec
    input_size: Size
    num_classes: int = 1000
    weights: str = ""
    seed: int = 0

    def content(self) -> str:
        """What a job's key holds of the weights."""
        try:
            return checksum(Path(self.weights).read_bytes())[:12] if self.weights else ""
        except OSError as error:
            raise DataError(f"{self.weights} cannot be read ({error.strerror}).") from error

    def load(self) -> nn.Module:
        """The network in evaluation mode.

        Raises:
            ConversionError: if there is no such network.
            DataError: if the file of weights cannot be read or does not fit the network.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.network.build(self.input_size, self.num_classes).eval()
        if self.weights:
            try:
                network.load_state_dict(load_file(self.weights))
            except (OSError, SafetensorError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise DataError(f"{self.weights} does not fit {self.network.name} ({reason}).") from error
        return network


@dataclass(frozen=True)
class Explain:
    """A job: heat maps of one network for some images.

    Attributes:
        training: how the network is trained; None for one that is given.
        given: that network; None for one that is trained.
        shown: the data set whose test images are explained, the first one of each class, or `photo:SIDE:FILE`.
        count: how many images.
    """

    experiment: ClassVar[str] = "explain"
    revision: ClassVar[int] = 2

    training: Training | None
    given: Given | None
    shown: str
    count: int = 4

    @property
    def data(self) -> str:
        """The data set that is read."""
        return self.shown

    @property
    def network(self) -> NetworkSpec:
        """Which network it is."""
        source = self.training or self.given
        assert source is not None
        return source.network

    @property
    def name(self) -> str:
        return f"explain {self.data}, {self.network.name}, {self.network.label}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """The taps' names and, for each image, it and its heat maps, packed, all at the image's size.

        The class explained is the image's own, or the one that the network finds where that is not known.
        """
        from td_compiler.benchmarks.data.datasets import load

        chosen = _first_of_each_class(load(self.data, machine, train=False), self.count).to(machine.torch_device)
        explainer, classes, size = self._explainer(machine, chosen)
        images = as_float(chosen.images)
        if size[0] == 1 and images.shape[1] == 3:
            images = images.mean(1, keepdim=True)
        scores = explainer.scores(images)
        found = scores.argmax(1)
        explained = found.where(chosen.labels == UNKNOWN, chosen.labels)
        maps = _heat_maps(explainer, images, explained)
        names = classes or tuple(f"class {number}" for number in range(scores.shape[1]))
        training = trained(self.training, machine) if self.training else None
        return {
            **({"train_images": training.train_images} if training else {}),
            "taps": list(explainer.taps),
            "images": [
                {
                    "explained": names[int(explained[i])],
                    "found": names[int(found[i])],
                    "labelled": int(chosen.labels[i]) != UNKNOWN,
                    "image": encode(images[i]),
                    "maps": {name: encode(heat[i]) for name, heat in maps.items()},
                }
                for i in range(len(images))
            ],
        }

    def _explainer(self, machine: Machine, chosen: Images) -> tuple[Explainer, Sequence[str], Size]:
        """The network, its classes' names where they are known, and its input size (C, H, W)."""
        from td_compiler.benchmarks.data.datasets import load
        from td_compiler.benchmarks.experiments.heatmaps.explainer import Explainer

        if self.training is None:
            assert self.given is not None
            network = self.given.load().to(machine.torch_device)
            return Explainer(network, self.given.input_size), (), self.given.input_size
        data = load(self.training.data, machine, train=False)
        return Explainer.of(trained(self.training, machine).network, data.input_size), data.classes, data.input_size


def encode(image: Tensor) -> dict[str, Any]:
    """An image (C, H, W) in [0, 1] in eight bits a channel, packed."""
    return packed((image.detach().clamp(0, 1) * 255).round().byte().cpu())


def _first_of_each_class(images: Images, count: int) -> Images:
    """The first image of each class, at most `count` of them."""
    import torch

    labels = images.labels.tolist()
    return images.subset(torch.tensor([labels.index(label) for label in sorted(set(labels))][:count]))


def _heat_maps(explainer: Explainer, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Heat maps (N, 1, H, W) in [0, 1]: Grad-CAM by tap, `saliency`, and `guided` where the network has ReLUs."""
    from td_compiler.benchmarks.experiments.heatmaps.explainer import at_image_size
    from td_compiler.report.heat_maps import to_unit

    maps = {tap: at_image_size(explainer.grad_cam(images, classes, tap), images.shape) for tap in explainer.taps}
    maps["saliency"] = explainer.saliency(images, classes)
    if explainer.has_relu:
        maps["guided"] = explainer.guided_backpropagation(images, classes)
    return {name: to_unit(heat) for name, heat in maps.items()}


EXPERIMENT = Experiment("explain", section)


_NETWORKS, _ARRANGEMENTS, _NONE, _NO_PHOTOS = ["nin_light"], ["mirror"], list[str](), list[Path]()


def _explain(
    setup: Setup,
    networks: Networks = _NETWORKS,
    data: Annotated[
        list[str], typer.Option(help="Train on this and, without --photo, explain its test images.")
    ] = _NONE,
    arrangement: Annotated[list[str], typer.Option(help="Top-down arrangements beside BU.")] = _ARRANGEMENTS,
    images: Annotated[int, typer.Option(min=1, help="How many test images, each of another class.")] = 4,
    photo: Annotated[
        list[Path], typer.Option(help="Explain image files, by networks trained on --data or of --weights.")
    ] = _NO_PHOTOS,
    weights: Annotated[
        list[str], typer.Option(metavar="ARRANGEMENT=FILE", help="Weights (.safetensors) of a network for --photo.")
    ] = _NONE,
    side: Annotated[int, typer.Option(min=8, help="What photos are resized to, without --data.")] = 224,
    classes: Annotated[int, typer.Option(min=2, help="Of untrained networks and those of --weights.")] = 1000,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Let networks without weights explain photographs, too.")
    ] = False,
) -> None:
    """Draw where networks look: Grad-CAM by stage, BU beside TD, saliency, guided backpropagation (paper, Exp. 3.a)."""
    ways = [("bu", ()), *((way, setup.options) for way in arrangement)]
    specs = [NetworkSpec(source, way, options) for source in networks for way, options in ways]
    if photo and not data:
        files = _by_arrangement(weights)
        if not untrained:
            _all_given(specs, files)
        jobs = [
            Explain(None, Given(spec, (3, side, side), classes, files.get(spec.arrangement, ""), setup.seed), name)
            for name in (f"photo:{side}:{path}" for path in photo)
            for spec in specs
        ]
    else:
        jobs = [
            Explain(setup.plan(spec, each, setup.seed), None, name, images)
            for each in data or ["fashion-mnist"]
            for name in _photos(setup, photo, each) or [each]
            for spec in specs
        ]
    EXPERIMENT.run(jobs, setup)


def _all_given(specs: Sequence[NetworkSpec], files: Mapping[str, str]) -> None:
    missing = next((spec.arrangement for spec in specs if spec.arrangement not in files), None)
    if missing is not None:
        raise typer.BadParameter(
            f"{missing} has no weights, and the heat map of an untrained network says nothing: train it with --data,"
            f" give --weights {missing}=FILE, or draw it nevertheless with --untrained",
            param_hint="--photo",
        )


def _photos(setup: Setup, photos: Sequence[Path], data: str) -> list[str]:
    """The photos as data sets, at the size of the images that the network is trained on."""
    from td_compiler.benchmarks.data.datasets import opened

    if not photos:
        return []
    side = opened(data, setup.machine, train=False).input_size[-1]
    return [f"photo:{side}:{path}" for path in photos]


def _by_arrangement(weights: Sequence[str]) -> dict[str, str]:
    """`mirror=FILE` as {"mirror": "FILE"}."""
    pairs = [each.partition("=") for each in weights]
    for arrangement, equals, path in pairs:
        if not equals or not path:
            raise typer.BadParameter(f"{arrangement!r}: give ARRANGEMENT=FILE, such as bu=net.safetensors.")
    return {arrangement: path for arrangement, _, path in pairs}


main = partial(run_command, _explain)
