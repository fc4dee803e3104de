"""Trained networks: each is trained once, by whoever needs it first, and loaded from then on."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import td_compiler
from td_compiler.benchmarks.data.datasets import fingerprint, load, opened
from td_compiler.benchmarks.data.images import Images, Stream, as_float
from td_compiler.benchmarks.lab.files import Damaged, checksum, said, write_synced
from td_compiler.benchmarks.lab.journal import waiting_lock
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.training.batches import Batches, augmented, batches, seed_of, split
from td_compiler.benchmarks.training.networks import NetworkSpec, helped
from td_compiler.benchmarks.training.normalise import normalisation
from td_compiler.benchmarks.training.norms import fresh_statistics, set_momentum
from td_compiler.benchmarks.training.recipes import FAST, Profile, Recipe, RecipeError, changed, options_for, recipe_for
from td_compiler.network.normalised import Normalise, Normalised

__all__ = [
    *("Builder", "Normalise", "Normalised", "Trained", "Training"),
    *("answers", "evaluate", "planned", "trained", "untrained"),
]

# Raised when the same training would now give other weights.
REVISION = 3

_ABOUT, _WEIGHTS = "training.json", "weights.safetensors"

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
        task: a key of `td_compiler.benchmarks.training.tasks.TASKS`.
        variant: what else a `build` of one's own depends on.
        teacher: `bu` where a top-down network also learns from the helper's scores, see `tasks.distilled`.
        start: `bu` where it starts with the helper's weights, as far as their shapes fit, in place of fresh ones.
        helper: the training of its bottom-up network; None where neither is asked for.
    """

    network: NetworkSpec
    data: str
    recipe: Recipe
    run: int = 0
    train_images: int | None = None
    test_images: int | None = None
    task: str = "classification"
    variant: str = ""
    teacher: str = ""
    start: str = ""
    helper: Training | None = None

    def __post_init__(self) -> None:
        wrong = [each for each in (self.teacher, self.start) if each not in ("", "bu")]
        if wrong:
            raise RecipeError(f"{wrong[0]!r} is no teacher and has no weights to start from: there is bu alone.")

    @property
    def label(self) -> str:
        """The network and what helps it: `mirror, head_width=32`, `mirror, teacher=bu`."""
        return ", ".join([self.network.label, *helped(self.teacher, self.start)])

    @property
    def name(self) -> str:
        """One line: `fashion-mnist zoo:lenet_fc mirror, run 0`."""
        variant = f" {self.variant}" if self.variant else ""
        label = f" {self.recipe.label}" if self.recipe.label else ""
        return f"{self.data} {self.network.name} {self.label}{variant}{label}, run {self.run}"

    def folder(self, machine: Machine) -> Path:
        """Where the trained network is kept.

        Raises:
            DataError: if the data set is unknown or missing.
        """
        depends = {
            **said(asdict(replace(self, test_images=None))),
            "revision": REVISION,
            "compiler": td_compiler.__version__,
            "content": fingerprint(self.data, machine),
            "sources": self.network.content(),
            "processor": machine.processor,
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
    teacher: str = "",
    start: str = "",
) -> Training:
    """A training by the recipe for a network and a data set, at the size of a profile.

    Args:
        profile: how many epochs and images.
        network, data, run, task: as in `Training`; the network gets the options of the papers' for the data.
        settings: `NAME=VALUE` in place of the recipe's; `fast` for its fast form.
        augment: as in `recipe_for`.
        teacher, start: as in `Training`; of no effect on a bottom-up network, which is the helper itself.

    Raises:
        RecipeError: if the recipe has no such setting, or there is no such teacher or start.
    """
    plain = recipe_for(data, network.name, network.arrangement, augment=augment, fast=FAST in settings)
    recipe = changed(profile.fit(plain), [setting for setting in settings if setting != FAST])
    if network.arrangement != "bu":
        network = network.with_options(options_for(data, network.name, network.arrangement))
    training = Training(network, data, recipe, run, profile.train_images, profile.test_images, task)
    if network.arrangement == "bu" or not (teacher or start):
        return training
    source = NetworkSpec(network.name)
    helper = planned(profile, source, data, run, settings=settings, augment=augment, task=task)
    return replace(training, teacher=teacher, start=start, helper=replace(helper, test_images=None))


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
        train_images: how many images there were to train on, the held-out ones included.
        history: of each epoch the mean `loss`, `held_out_loss` and `held_out_score`, and its `seconds`.
    """

    training: Training
    machine: Machine
    network: Normalised
    seconds_per_epoch: float
    peak_memory: int
    input_size: tuple[int, int, int]
    classes: int
    train_images: int
    history: list[dict[str, float]]

    @functools.cached_property
    def right(self) -> Tensor:
        """Whether it finds the class of each test image, (N,), in their order."""
        data = load(self.training.data, self.machine, train=False, limit=self.training.test_images)
        return answers(self.network, data) == data.labels

    @property
    def accuracy(self) -> float:
        """The share of the test images that it classifies rightly, from 0 to 1."""
        return float(self.right.double().mean())

    @property
    def counts(self) -> dict[str, int]:
        """How many images there were, for results."""
        return {"train_images": self.train_images, "test_images": len(self.right)}


@torch.no_grad()
def answers(network: nn.Module, data: Images, batch_size: int = 500) -> Tensor:
    """The classes (N,), or (N, H, W), that a network in eval mode finds, on its own device, in a data set's images."""
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    chosen = torch.arange(len(data)).split(batch_size)
    found = [network(as_float(images.to(device))).argmax(1).cpu() for images, _ in Batches(data, chosen)]
    return torch.cat(found)


def evaluate(network: nn.Module, data: Images) -> float:
    """The share of a data set's images that a network in eval mode classifies rightly, from 0 to 1."""
    return float((answers(network, data) == data.labels).double().mean())


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
    kept = _kept(folder)
    if kept is None and machine.rank:
        _train(training, machine, folder, build)  # together with the first process, which keeps what comes out
    elif kept is None:
        with waiting_lock(folder / "lock", training.name):
            if _kept(folder) is None:
                _train(training, machine, folder, build)
    return _loaded(training, machine, kept or _kept(folder), build)


Kept = tuple[dict[str, Any], bytes]
"""What is said of a trained network, and its weights as a safetensors file."""


def _kept(folder: Path) -> Kept | None:
    """The trained network of a folder; None where there is none, or, said on standard error, it is damaged."""
    path = folder / _ABOUT
    if not path.exists():
        return None
    try:
        about: dict[str, Any] = json.loads(path.read_bytes())
        if about.pop("checksum") != checksum(json.dumps(about).encode()):
            raise Damaged(f"{path} does not fit its checksum")
        weights = (folder / _WEIGHTS).read_bytes()
        if checksum(weights) != about["weights"]:
            raise Damaged(f"{folder / _WEIGHTS} does not fit its checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        print(f"The trained network in {folder} is damaged ({error}); it is trained again.", file=sys.stderr)
        return None
    return about, weights


def _train(training: Training, machine: Machine, folder: Path, build: Builder | None) -> None:
    from td_compiler.benchmarks.training.fitting import fit

    if training.helper is not None:
        trained(training.helper, machine)  # those that train the network load it
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
    """Write the trained network, whole or not at all, and remove the checkpoints."""
    from safetensors.torch import save

    weights = save({name: tensor.contiguous() for name, tensor in state.items()})
    sizes = {"input_size": data.input_size, "classes": len(data.classes), "train_images": len(data)}
    plain = json.loads(json.dumps({**notes, **sizes, "training": asdict(training), "weights": checksum(weights)}))
    about = {**plain, "checksum": checksum(json.dumps(plain).encode())}
    write_synced({folder / _WEIGHTS: weights, folder / _ABOUT: json.dumps(about, indent=1).encode()})
    for checkpoint in folder.glob("*.ckpt"):
        checkpoint.unlink(missing_ok=True)


def untrained(training: Training, machine: Machine, build: Builder | None = None) -> Normalised:
    """The network as it is before its training, on the CPU, in training mode; raises as `trained` does."""
    data = opened(training.data, machine, train=True, limit=training.train_images)
    network = _fresh(training, data.input_size, len(data.classes), build)
    network.normalise = normalisation(data, training.recipe.normalise)
    if training.start and training.helper is not None:
        source = trained(training.helper, machine).network.net
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(training.run))  # layers whose shapes changed are new
            network.net = training.network.reversed(source.cpu(), data.input_size, init="keep").train()
    if training.recipe.norm_momentum:
        set_momentum(network, training.recipe.norm_momentum)
    return network


def _fresh(training: Training, size: tuple[int, int, int], classes: int, build: Builder | None) -> Normalised:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(training.run))
        network = (build or training.network.build)(size, classes)
    return Normalised(nn.Identity(), network.train())


def _loaded(training: Training, machine: Machine, kept: Kept | None, build: Builder | None) -> Trained:
    from safetensors.torch import load as load_weights

    assert kept is not None
    about, state = kept[0], load_weights(kept[1])
    channels, height, width = about["input_size"]
    network = _fresh(training, (channels, height, width), about["classes"], build)
    if "normalise.mean" in state:
        network.normalise = Normalise(state["normalise.mean"], state["normalise.deviation"])
    network.load_state_dict(state)
    named = {name: about[name] for name in ("seconds_per_epoch", "peak_memory", "classes", "train_images", "history")}
    ready = network.to(machine.torch_device).eval()
    return Trained(training, machine, ready, input_size=(channels, height, width), **named)
