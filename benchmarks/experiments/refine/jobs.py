"""What is measured of networks that refine one window (`td_compiler.network.refine`): cost and worth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from td_compiler.benchmarks.data.datasets import load
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.memory import saved_bytes
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.training import Normalised, Training, evaluate, trained
from td_compiler.capture.skeleton import skeleton
from td_compiler.network.refine import Refined

__all__ = ["CostJob", "WindowJob", "count_macs", "refine_jobs"]

_CLASSES = 1_000
_ROUNDS = 3


@dataclass(frozen=True)
class CostJob:
    """Measure a top-down network with windows of several sizes, side by side.

    Attributes:
        network: a top-down network of images (3, side, side) and 1,000 classes, as for ImageNet.
        side: of the images, in pixels.
        patches: the windows' shares of the image's sides; 1 is the network itself.
        images: how many at once.
    """

    experiment: ClassVar[str] = "refine"
    revision: ClassVar[int] = 1

    network: NetworkSpec
    side: int
    patches: tuple[float, ...]
    images: int = 2
    part: str = "cost"
    data: str = ""

    @property
    def name(self) -> str:
        """One line for progress and logs."""
        return f"cost of {self.network.name} {self.network.label} at {self.side}x{self.side}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """By patch: MACs of an image, bytes kept for the backward pass, seconds of inference and of a training step."""
        torch.manual_seed(0)
        size = (3, self.side, self.side)
        td: Any = self.network.build(size, _CLASSES)
        images = torch.randn(self.images, *size, device=machine.torch_device)
        networks = {str(patch): Refined(td, patch).to(machine.torch_device) for patch in self.patches}
        figures: dict[str, Any] = {
            "from_scale": next(iter(networks.values())).from_scale,
            "macs": {patch: count_macs(network, size) for patch, network in networks.items()},
            "bytes": {patch: saved_bytes(network.train(), images) for patch, network in networks.items()},
        }
        for kind, prepare in (("inference", _inference), ("step", _step)):
            runs = {patch: prepare(network, images) for patch, network in networks.items()}
            figures[kind] = _times(runs, machine.torch_device)
        return figures


@dataclass(frozen=True)
class WindowJob:
    """Train a top-down network with a window, test it with windows of several sizes.

    Attributes:
        training: of a top-down network.
        patch: in training; 1 is the network itself.
        patches: in testing.
    """

    experiment: ClassVar[str] = "refine"
    revision: ClassVar[int] = 2

    training: Training
    patch: float
    patches: tuple[float, ...]
    part: str = "accuracy"

    @property
    def data(self) -> str:
        """The data set."""
        return self.training.data

    @property
    def name(self) -> str:
        """One line for progress and logs."""
        return f"window of {self.patch:g}: {self.training.name}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """By patch of the test: the accuracy, from 0 to 1, and the MACs of an image; seconds and memory of training.

        The accuracy `elsewhere` is with the patch of the training at a random place, to tell what choosing it is worth.
        """
        plan = replace(self.training, variant=f"window of {self.patch:g}")
        result = trained(plan, machine, build=self._build)
        test = load(self.data, machine, train=False, limit=plan.test_images)
        wrapped: Any = result.network.net

        def accuracy(window: Refined) -> float:
            return evaluate(Normalised(result.network.normalise, window.eval()), test)

        windows = {str(patch): Refined(wrapped.td, patch) for patch in self.patches}
        with torch.random.fork_rng():
            torch.manual_seed(plan.run)
            elsewhere = accuracy(Refined(wrapped.td, self.patch, saliency=_anywhere))
        return {
            "accuracy": {patch: accuracy(window) for patch, window in windows.items()},
            "elsewhere": elsewhere,
            "macs": {patch: count_macs(window, result.input_size) for patch, window in windows.items()},
            "seconds_per_epoch": result.seconds_per_epoch,
            "peak_memory": result.peak_memory,
            "train_images": result.train_images,
            "test_images": len(test),
        }

    def _build(self, size: tuple[int, int, int], classes: int) -> Refined:
        td: Any = self.training.network.build(size, classes)
        return Refined(td, self.patch)


def count_macs(network: nn.Module, size: tuple[int, int, int]) -> int:
    """Multiply-accumulate operations of one image (C, H, W), by torch's own count of what is run."""
    bones = skeleton(network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bones(torch.empty(1, *size, device="meta"))
    return counter.get_total_flops() // 2


def _anywhere(maps: torch.Tensor) -> torch.Tensor:
    return torch.rand(len(maps), *maps.shape[2:], device=maps.device)


def _inference(network: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> object:
        return network.eval()(images)

    return run


def _step(network: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        network.train()(images).square().mean().backward()
        network.zero_grad()
        return None

    return run


def _times(runs: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The median seconds of each, taken in turns, so that all meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for attempt in range(1 + _ROUNDS):
        for name, run in runs.items():
            start = _clock(device)
            run()
            if attempt:  # the first warms up
                seconds[name].append(_clock(device) - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _clock(device: torch.device) -> float:
    """Seconds: of a GPU when its work is done; of the processor, which counts no other program's work."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def refine_jobs(
    costs: Sequence[NetworkSpec], side: int, trainings: Sequence[Training], patches: Sequence[float]
) -> list[CostJob | WindowJob]:
    """A cost job for every network, and for every training one with each window.

    Args:
        costs: networks whose cost is measured.
        side: of the images that it is measured at.
        trainings: of networks that are trained with each window.
        patches: the windows' shares of the image's sides; the network as it is, 1, is always among them.
    """
    shares = tuple(sorted({1.0, *patches}, reverse=True))
    jobs: list[CostJob | WindowJob] = [CostJob(network, side, shares) for network in costs]
    return jobs + [WindowJob(training, patch, shares) for training in trainings for patch in shares]
