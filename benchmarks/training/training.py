"""Trained networks: each is trained once, by whoever needs it first, and loaded from then on."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

import td_compiler
from benchmarks.data.datasets import fingerprint, load, opened
from benchmarks.data.images import Images, Stream, as_float
from benchmarks.lab.machine import Machine
from benchmarks.training.batches import Batches, augmented, batches, seed_of, split
from benchmarks.training.networks import NetworkSpec
from benchmarks.training.normalise import Normalise, Normalised, normalisation
from benchmarks.training.norms import fresh_statistics
from benchmarks.training.recipes import Profile, Recipe, changed, recipe_for
from benchmarks.training.tasks import task_of
from td_compiler.files import write_together

__all__ = ["Builder", "Normalise", "Normalised", "Trained", "Training", "evaluate", "planned", "trained", "untrained"]

# Raised when the same training would now give other weights.
REVISION = 2

# So many images give the statistics of norms.
_ENOUGH = 5_000

Builder = Callable[[tuple[int, int, int], int], nn.Module]


@dataclass(frozen=True)
class Training:
    """Everything that determines a trained network's weights.

    Attributes:
        network: what is trained.
        data: the data set's name.
        recipe: how.
        run: the seed: of the fresh weights, the held-out images, the order of batches and all else that is random.
        train_images: how many training images, the held-out ones included; None for all.
        test_images: how many images the trained network is tested on; of no influence on the weights.
        task: a key of `benchmarks.training.tasks.TASKS`.
        variant: what else a `build` of one's own depends on.
    """

    network: NetworkSpec
    data: str
    recipe: Recipe
    run: int = 0
    train_images: int | None = None
    test_images: int | None = None
    task: str = "classification"
    variant: str = ""

    @property
    def name(self) -> str:
        """One line: `fashion-mnist zoo:lenet_fc mirror, run 0`."""
        variant = f" {self.variant}" if self.variant else ""
        return f"{self.data} {self.network.name} {self.network.label}{variant}, run {self.run}"

    def folder(self, machine: Machine) -> Path:
        """Where the trained network is kept.

        Raises:
            DataError: if the data set is unknown or missing.
        """
        depends = {
            **asdict(replace(self, test_images=None)),
            "revision": REVISION,
            "compiler": td_compiler.__version__,
            "content": fingerprint(self.data, machine),
            "precision": machine.precision,
        }
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        return machine.checkpoints / f"{re.sub(r'[^a-zA-Z0-9]+', '-', self.name)[-80:].strip('-')}-{key}"


def planned(
    profile: Profile,
    network: NetworkSpec,
    data: str,
    run: int,
    *,
    settings: Sequence[str] = (),
    augment: str | None = None,
    task: str = "classification",
) -> Training:
    """A training by the recipe for a network and a data set, at the size of a profile.

    Args:
        profile: how many epochs and images.
        network, data, run, task: as in `Training`.
        settings: `NAME=VALUE` in place of the recipe's.
        augment: as in `recipe_for`.

    Raises:
        RecipeError: if the recipe has no such setting.
    """
    recipe = changed(profile.fit(recipe_for(data, network.name, network.arrangement, augment=augment)), settings)
    return Training(network, data, recipe, run, profile.train_images, profile.test_images, task)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and how it came about.

    Attributes:
        training: what was asked for.
        machine: where its data are.
        network: on the machine's device, in eval mode; takes images in [0, 1].
        seconds_per_epoch: the median, validation not counted.
        peak_memory: bytes: on a GPU the most that was allocated; on a CPU what one training step holds: weights,
            gradients, momentum, and all that the backward pass needs.
        input_size: (C, H, W) of its images.
        classes: the number of its scores.
        history: of each epoch the mean `loss`, `held_out_loss` and `held_out_score`, and its `seconds`.
    """

    training: Training
    machine: Machine
    network: Normalised
    seconds_per_epoch: float
    peak_memory: int
    input_size: tuple[int, int, int]
    classes: int
    history: list[dict[str, float]]

    @functools.cached_property
    def accuracy(self) -> float:
        """The task's score on the test images, from 0 to 1."""
        data = load(self.training.data, self.machine, train=False, limit=self.training.test_images)
        return evaluate(self.network, data, self.training.task, self.training.recipe.batch_size)


@torch.no_grad()
def evaluate(network: nn.Module, data: Images, task: str = "classification", batch_size: int = 128) -> float:
    """A task's score, from 0 to 1, of a network in eval mode on its own device."""
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    metric = task_of(task).metric(len(data.classes)).to(device)
    for images, labels in Batches(data, torch.arange(len(data)).split(4 * batch_size)):
        metric.update(network(as_float(images.to(device))), labels.to(device))
    return float(metric.compute())


def trained(training: Training, machine: Machine, *, build: Builder | None = None) -> Trained:
    """Train a network, go on with a training that was interrupted, or load what is there.

    A training that was interrupted goes on from its last finished epoch and ends with the same bits as one that was
    not, on the same machine with the same number of threads. Processes that want the same network wait for the first.

    Args:
        training: what to train.
        machine: where and how.
        build: makes the untrained network from (C, H, W) and the number of classes; by default
            `training.network.build`. What it depends on must be in `training.network` or `training.variant`.

    Raises:
        DataError: if the data set is unknown, missing or damaged.
        ConversionError: if there is no such network or it does not fit the data.
        OSError: if a checkpoint cannot be written.
    """
    folder = training.folder(machine)
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_done(folder) and machine.rank:
        _train(training, machine, folder, build)  # together with the first process, which keeps what comes out
    elif not _is_done(folder):
        with FileLock(folder / "lock"):
            if not _is_done(folder):
                _train(training, machine, folder, build)
    return _loaded(training, machine, folder, build)


def _is_done(folder: Path) -> bool:
    return (folder / "training.json").is_file()


def _train(training: Training, machine: Machine, folder: Path, build: Builder | None) -> None:
    from benchmarks.training.fitting import fit

    data = opened(training.data, machine, train=True, limit=training.train_images)
    state, notes = fit(training, machine, folder, build)
    _meet()  # all have read the checkpoint
    if not machine.rank:
        if training.recipe.fresh_statistics:
            state |= _statistics(state, training, machine, build)
        _keep(training, folder, data, state, notes)
    _meet()  # all can read what is kept


def _statistics(
    state: dict[str, Tensor], training: Training, machine: Machine, build: Builder | None
) -> dict[str, Tensor]:
    """The running statistics of a trained network's norms, taken anew from its training images."""
    network, device = untrained(training, machine, build).to(machine.torch_device), machine.torch_device
    network.load_state_dict(state)
    data = opened(training.data, machine, train=True, limit=training.train_images)
    kept, _ = split(len(data), training.recipe.held_out, training.run)
    order = kept[:_ENOUGH].split(training.recipe.batch_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(training.run, purpose=4))  # for dropout
        images = (augmented(as_float(each.to(device)), "none", data.crop) for each, _ in batches(data, order))
        return {name: buffer.cpu() for name, buffer in fresh_statistics(network, images).items()}


def _meet() -> None:
    """Wait for the other processes that `torchrun` started."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _keep(
    training: Training, folder: Path, data: Images | Stream, state: dict[str, Tensor], notes: dict[str, Any]
) -> None:
    """Write the trained network, whole or not at all, and remove the checkpoint."""
    about = {**notes, "training": asdict(training), "input_size": data.input_size, "classes": len(data.classes)}
    weights, description = folder / "weights.safetensors", json.dumps(about, indent=1)
    write_together({weights: _saver(state), folder / "training.json": lambda path: path.write_text(description)})
    (folder / "last.ckpt").unlink(missing_ok=True)


def _saver(state: dict[str, Tensor]) -> Callable[[Path], object]:
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in state.items()})
    return lambda path: path.write_bytes(content)


def untrained(training: Training, machine: Machine, build: Builder | None = None) -> Normalised:
    """The network as it is before its training, on the CPU, in training mode; raises as `trained` does."""
    data = opened(training.data, machine, train=True, limit=training.train_images)
    network = _fresh(training, data.input_size, len(data.classes), build)
    network.normalise = normalisation(data, training.recipe.normalise)
    return network


def _fresh(training: Training, size: tuple[int, int, int], classes: int, build: Builder | None) -> Normalised:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(training.run))
        network = (build or training.network.build)(size, classes)
    return Normalised(nn.Identity(), network.train())


def _loaded(training: Training, machine: Machine, folder: Path, build: Builder | None) -> Trained:
    from safetensors.torch import load_file

    about: dict[str, Any] = json.loads((folder / "training.json").read_text())
    state = load_file(folder / "weights.safetensors")
    channels, height, width = about["input_size"]
    network = _fresh(training, (channels, height, width), about["classes"], build)
    if "normalise.mean" in state:
        network.normalise = Normalise(state["normalise.mean"], state["normalise.deviation"])
    network.load_state_dict(state)
    return Trained(
        training,
        machine,
        network.to(machine.torch_device).eval(),
        about["seconds_per_epoch"],
        about["peak_memory"],
        (channels, height, width),
        about["classes"],
        about["history"],
    )
