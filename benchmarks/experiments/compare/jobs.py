"""The jobs of `compare`: one measure of one trained network, image by image; and how long they will take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from td_compiler.benchmarks.data.datasets import load, opened
from td_compiler.benchmarks.data.images import Images, as_float
from td_compiler.benchmarks.experiments.compare import measures
from td_compiler.benchmarks.experiments.robustness.jobs import AttackJob, CorruptionJob, network_of
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.lab.steps import inference_step, seconds_in_turns, training_step
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.training import Training, untrained

__all__ = ["ATTACKS", "MEASURES", "Compare", "Measure", "Size", "seconds_needed"]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        images: test images; None for all.
        few: of these as many for what is costly, attacks and heat maps.
        steps: of an attack's search.
        bound: the largest change of a value, of 1, for the worst of several attacks.
        objects: how the object in an image is known, for heat maps: `bright` pixels, `masks`, `boxes`; "": not at all.
    """

    images: int | None
    few: int
    steps: int
    bound: float
    objects: str = ""


@dataclass(frozen=True)
class Compare:
    """A job: measure one trained network.

    Attributes:
        training: how it is trained; its run seeds the measure, too.
        measure: a key of `MEASURES`.
        size: how much is measured.
    """

    experiment: ClassVar[str] = "compare"
    revision: ClassVar[int] = 1

    training: Training
    measure: str
    size: Size

    @property
    def data(self) -> str:
        return self.training.data

    @property
    def name(self) -> str:
        return f"compare {self.training.name}, {self.measure}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """What the measure gives; arrays of a value or a row for each image, packed."""
        found = MEASURES[self.measure].find(self, machine)
        return {name: packed(each.cpu()) if isinstance(each, Tensor) else each for name, each in found.items()}

    def images(self, machine: Machine, few: bool = False) -> Images:
        """The test images, or the first few of them, on the machine's device."""
        test = load(self.data, machine, train=False, limit=self.size.images)
        chosen = test.subset(torch.arange(min(self.size.few, len(test)))) if few else test
        return chosen.to(machine.torch_device)

    def chance(self) -> torch.Generator:
        """The run's random numbers: the same for all networks of a run."""
        return torch.Generator().manual_seed(self.training.run)


@dataclass(frozen=True)
class Measure:
    """One kind of measurement.

    Attributes:
        find: from the job, the figures.
        passes: how many images a network sees for each test image, a backward pass counting as two; from the steps of
            an attack's search and the number of an image's values.
        few: whether it looks at few images.
    """

    find: Callable[[Compare, Machine], dict[str, Any]]
    passes: Callable[[int, int], float]
    few: bool = False


def _answers(job: Compare, machine: Machine) -> dict[str, Any]:
    """For each image whether the class found is right, its probability, and the loss."""
    found, test = network_of(job.training, machine), job.images(machine)
    scores = torch.cat([measures.in_batches(found.network, as_float(each)) for each in test.images.split(1_000)])
    confidences, classes = scores.softmax(1).max(1)
    return {
        "train_images": found.train_images,
        "test_images": len(test),
        "commonest": float(test.labels.bincount().max() / len(test)),
        "seconds_per_epoch": found.seconds_per_epoch,
        "right": classes == test.labels,
        "confidence": confidences,
        "loss": torch.nn.functional.cross_entropy(scores, test.labels, reduction="none"),
    }


_PAIRS = 5


def _shifts(job: Compare, machine: Machine) -> dict[str, Any]:
    network, test = network_of(job.training, machine).network, job.images(machine)
    return {"agreed": measures.shift_agreement(network, as_float(test.images), _PAIRS, job.chance())}


def _corruptions(job: Compare, machine: Machine) -> dict[str, Any]:
    """For each image whether it is right, and at how many severities of each corruption it is not."""
    return CorruptionJob(job.training, job.size.images).run(machine)


def _attack(name: str, job: Compare, machine: Machine) -> dict[str, Any]:
    """For each image whether it is right and the distance of the smallest perturbation found, infinite for none."""
    attack = AttackJob(job.training, name, min(job.size.few, job.size.images or job.size.few), job.size.steps)
    found = attack.run(machine)
    distances = {
        norm: torch.tensor([math.inf if each is None else each for each in found[norm]]) for norm in ("l2", "linf")
    }
    return {"right": found["right"], **distances}


def _worst(job: Compare, machine: Machine) -> dict[str, Any]:
    from td_compiler.benchmarks.attacks.worst_case import withstands

    torch.manual_seed(job.training.run)
    network, test = network_of(job.training, machine).network, job.images(machine, few=True)
    return {"withstood": withstands(network, as_float(test.images), test.labels, job.size.bound)}


_PARTS = 16  # in which pixels are deleted and inserted


def _heat_maps(job: Compare, machine: Machine) -> dict[str, Any]:
    """Of Grad-CAM at the last map, for the class that the network finds; against itself with random weights."""
    from td_compiler.benchmarks.experiments.heatmaps.explainer import Explainer, at_image_size
    from td_compiler.benchmarks.experiments.heatmaps.localise import blob

    network, test = network_of(job.training, machine).network, job.images(machine, few=True)
    images, size = as_float(test.images), test.input_size
    classes = measures.in_batches(network, images).argmax(1)
    random = untrained(job.training, machine).to(machine.torch_device).eval()
    maps = []
    for each in (network, random):
        explainer = Explainer.of(each, size)
        heat = torch.cat([explainer.grad_cam(*some, explainer.taps[-1]) for some in _batches(images, classes)])
        maps.append(at_image_size(heat, images.shape))
    deleted, inserted = measures.deletion_and_insertion(network, images, maps[0], classes, _PARTS, job.chance())
    found = {
        "deletion": deleted,
        "insertion": inserted,
        "random": measures.rank_correlation(maps[0], maps[1]).abs(),
    }
    if job.size.objects:
        objects = _objects(job, images, machine)
        found |= {"share": objects.double().mean((1, 2, 3)), "object": objects.flatten(1).sum(1).float()}
        found |= {"hit": measures.hits(maps[0], objects), "energy": measures.energy_inside(maps[0], objects)}
        middle = blob(images.shape).expand_as(maps[0]).to(images)
        for name, heat in (("", maps[0]), (" of random weights", maps[1]), (" of a blob", middle)):
            found[f"boxes{name}"] = measures.box_overlaps(heat, objects)
            if job.size.objects != "boxes":
                found[f"pixels{name}"] = measures.pixels_above(heat, objects).float()
    return found


def _objects(job: Compare, images: Tensor, machine: Machine) -> Tensor:
    """Which pixels of images (N, C, H, W) are the object's: (N, 1, H, W)."""
    from td_compiler.benchmarks.data.objects import load_objects

    if job.size.objects == "bright":
        return images.amax(1, keepdim=True) > _BRIGHT
    return load_objects(job.data, machine, job.size.images)[: len(images)].to(images.device)


_BRIGHT = 0.2  # the papers' threshold of objects (SPEC 6.3b)


def _batches(images: Tensor, classes: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(images.split(250), classes.split(250), strict=True)


_REPEATS = 9


def _cost(job: Compare, machine: Machine) -> dict[str, Any]:
    """Parameters, MACs and, in turns, seconds of steps of the bottom-up and the top-down network."""
    data = opened(job.data, machine, train=True, limit=job.training.train_images)
    specs = {"BU": bottom_up(job.training.network), "TD": job.training.network}
    costs = {who: spec.costs(data.input_size, len(data.classes)) for who, spec in specs.items()}
    steps = _seconds_of_steps({who: replace(job.training, network=spec) for who, spec in specs.items()}, machine)
    return {
        "parameters": {who: each.parameters for who, each in costs.items()},
        "macs": {who: each.macs for who, each in costs.items()},
        "batch": job.training.recipe.batch_size,
        **steps,
    }


def bottom_up(network: NetworkSpec) -> NetworkSpec:
    """The network that a top-down network is made of."""
    return NetworkSpec(network.name)


def _seconds_of_steps(
    trainings: Mapping[Any, Training], machine: Machine, repeats: int = _REPEATS
) -> dict[str, dict[Any, list[float]]]:
    """Seconds of a `training` and an `inference` step of a batch, of each network, in turns."""
    first = next(iter(trainings.values()))
    data = opened(first.data, machine, train=True, limit=first.train_images)
    some = data.subset(torch.arange(min(first.recipe.batch_size, len(data))))
    some = (some if isinstance(some, Images) else some.gather()).cropped().to(machine.torch_device)
    networks = {who: untrained(each, machine).to(machine.torch_device) for who, each in trainings.items()}
    return {
        kind: seconds_in_turns(
            {who: step(each, as_float(some.images), some.labels) for who, each in networks.items()},
            range(repeats),
            machine.torch_device,
        )
        for kind, step in (("training", training_step), ("inference", inference_step))
    }


def _growing(each: float, repeats: int = 1) -> Callable[[int, int], float]:
    """Of a search that grows in steps and then halves one of them five times."""
    return lambda steps, values: repeats * each * (steps + 5)


# The attacks of the papers and two that use gradients, with the passes of each (as counted on Fashion-MNIST).
ATTACKS: Mapping[str, Callable[[int, int], float]] = {
    "single pixel": lambda steps, values: 3 * 10 * steps,
    "salt and pepper": lambda steps, values: 3 * 10 * steps,
    "pointwise": lambda steps, values: 3 * (10 * steps + 2 * values),
    "additive Gaussian": _growing(1, 3),
    "additive uniform": _growing(1, 3),
    "blended uniform": lambda steps, values: 3 * 20 * steps,
    "Gaussian blur": _growing(2),
    "contrast reduction": _growing(1),
    "rotations and shifts": _growing(28),
    "shifts": _growing(10),
    "FGSM": _growing(4),
    "PGD": _growing(31),
}

MEASURES: Mapping[str, Measure] = {
    "answers": Measure(_answers, lambda steps, values: 1),
    "consistency": Measure(_shifts, lambda steps, values: 2 * _PAIRS),
    "corruptions": Measure(_corruptions, lambda steps, values: 71),
    **{name: Measure(partial(_attack, name), passes, few=True) for name, passes in ATTACKS.items()},
    "worst attack": Measure(_worst, lambda steps, values: 350, few=True),
    "heat maps": Measure(_heat_maps, lambda steps, values: 2 * _PARTS + 10, few=True),
    "cost": Measure(_cost, lambda steps, values: 0),
}


def seconds_needed(jobs: Iterable[Compare], machine: Machine) -> dict[str, float]:
    """About how long jobs will take, for each network: from steps that are taken here, as fast as the machine now is.

    A network that has been trained costs no training. An attack that succeeds at once takes less than it is counted
    for.

    Raises:
        DataError: if the data set is missing.
        ConversionError: if a network does not fit it.
    """
    by_label: dict[str, list[Compare]] = {}
    for job in jobs:
        by_label.setdefault(job.training.network.label, []).append(job)
    seconds = {}
    steps = _seconds_of_steps({label: mine[0].training for label, mine in by_label.items()}, machine, repeats=2)
    for label, mine in by_label.items():
        batch = mine[0].training.recipe.batch_size
        training, inference = (min(steps[kind][label]) / batch for kind in ("training", "inference"))
        fresh = {job.training for job in mine if not _is_trained(job.training, machine)}
        total = sum(training * each.recipe.epochs * _train_images(each, machine) for each in fresh)
        seconds[label] = total + sum(inference * _passes(job, machine) for job in mine)
    return seconds


def _is_trained(training: Training, machine: Machine) -> bool:
    return (training.folder(machine) / "training.json").exists()


def _train_images(training: Training, machine: Machine) -> int:
    return len(opened(training.data, machine, train=True, limit=training.train_images))


def _passes(job: Compare, machine: Machine) -> float:
    """Images that a network sees in a job."""
    measure, test = MEASURES[job.measure], opened(job.data, machine, train=False, limit=job.size.images)
    each = measure.passes(job.size.steps, math.prod(test.input_size))
    return each * (min(job.size.few, len(test)) if measure.few else len(test))
