"""What is measured at one size: a bottom-up network and its top-down network, their steps taking turns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from td_compiler import TopDownNet, reverse, zoo
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.memory import saved_bytes
from td_compiler.benchmarks.lab.resident import growth_at_peak, in_own_process
from td_compiler.benchmarks.lab.steps import (
    inference_step,
    peak_of_step,
    seconds_in_turns,
    seconds_of_steps,
    training_step,
)
from td_compiler.benchmarks.training.networks import Costs, source_content
from td_compiler.sources.names import load_source

__all__ = ["SIZES", "ScalingJob", "Size", "scaling_jobs"]

Axis = Literal["batch", "side", "depth"]

_GIB = 2**30
_CHANNELS, _SIDE = 3, 32
_DEPTH_BATCH = 2
_PART = 16


@dataclass(frozen=True)
class Size:
    """How far the experiment goes.

    Attributes:
        batches, sides, depths: the points on each axis.
        repeats: measurements of each time.
        seconds: a point is left out if a training step is expected to take longer.
        memory: or more GiB.
    """

    batches: tuple[int, ...]
    sides: tuple[int, ...]
    depths: tuple[int, ...]
    repeats: int
    seconds: float
    memory: float


SIZES = {
    "smoke": Size((1, 2, 4), (16, 32, 64), (8, 14, 20), repeats=2, seconds=1, memory=1),
    "quick": Size((1, 4, 16, 64, 256), (32, 64, 128, 256, 512), (8, 20, 56, 164, 452, 1202), 3, seconds=8, memory=6),
    "paper": Size(
        tuple(2**power for power in range(9)),
        (32, 48, 64, 96, 128, 192, 256, 384, 512),
        (8, 14, 20, 32, 56, 110, 218, 434, 866, 1202),
        *(9, 60, 12),
    ),
}


@dataclass(frozen=True)
class ScalingJob:
    """Measure one network and its top-down network at one size.

    Attributes:
        axis: what grows.
        network: a source as the command line names it, or `resnet` for the zoo's pre-activation ResNet of a depth.
        depth: of that ResNet; None for others.
        batch, side: the images are (batch, 3, side, side).
        repeats, seconds, memory: as in `Size`.
        threads: of torch.
        device: what it is measured on, in words.
    """

    experiment: ClassVar[str] = "scaling"
    revision: ClassVar[int] = 1
    data: ClassVar[str] = ""

    axis: Axis
    network: str
    depth: int | None
    batch: int
    side: int
    repeats: int
    seconds: float
    memory: float
    threads: int
    device: str

    @property
    def name(self) -> str:
        """One line for progress and logs."""
        layers = f" with {self.depth} layers" if self.depth else ""
        return f"{self.network}{layers} on {self.batch} x {self.side} x {self.side}"

    def content(self) -> str:
        """What the job's key holds of the source."""
        return source_content(self.network) if self.depth is None else ""

    def run(self, machine: Machine) -> dict[str, Any]:
        """For `bu` and `td`: costs, seconds and bytes; or why the point was left out."""
        torch.set_num_threads(self.threads)
        device = machine.torch_device
        costs, expected = self._costs()
        figures: dict[str, Any] = {
            name: {"parameters": cost.parameters, "macs": self.batch * cost.macs} for name, cost in costs.items()
        }
        if expected > self.memory * _GIB:
            return {**figures, "left_out": f"about {expected / _GIB:.1f} GiB, more than {self.memory:g}"}
        networks = {name: self._network(name, device) for name in costs}
        images, labels = self._batch(device)
        waiting = self._expected_seconds(networks, images)
        if waiting > self.seconds:
            return {**figures, "left_out": f"about {waiting:.0f} s for a training step, more than {self.seconds:g}"}
        measured = seconds_of_steps(networks, images, labels, self.repeats, machine, self.name)
        for kind, taken in measured.items():
            for name, seconds in taken.items():
                figures[name][kind] = seconds
        for name, network in networks.items():
            figures[name]["saved"] = saved_bytes(network, images)
            figures[name]["peak"] = peak_of_step(network, images, labels, partial(in_own_process, _growth, self, name))
        return figures

    def _costs(self) -> tuple[dict[str, Costs], float]:
        """What both networks cost for an image, without weights, and the bytes that a training step may take."""
        report = self._top_down("meta").report
        stages = {
            "bu": [stage.bottom_up for stage in report.stages if stage.bottom_up],
            "td": [stage.top_down for stage in report.stages],
        }
        costs = {
            name: Costs(sum(cost.parameters for cost in each), sum(cost.macs for cost in each))
            for name, each in stages.items()
        }
        # Every map is kept once for the backward pass, and about as much again is there for a moment.
        return costs, 2.0 * self.batch * sum(cost.activation_bytes for cost in stages["td"])

    def _bottom_up(self, device: str) -> nn.Module:
        if self.depth is None:
            return load_source(self.network, {}, device=device).model
        with torch.device(device):
            return zoo.resnet(self.depth)

    def _top_down(self, device: str) -> TopDownNet:
        return reverse(self._bottom_up(device), input_size=(_CHANNELS, self.side, self.side))

    def _network(self, name: str, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        return (self._bottom_up("cpu") if name == "bu" else self._top_down("cpu")).to(device).train()

    def _batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(self.batch, _CHANNELS, self.side, self.side, generator=generator)
        return images.to(device), torch.zeros(self.batch, dtype=torch.long, device=device)

    def _expected_seconds(self, networks: dict[str, nn.Module], images: Tensor) -> float:
        """Of the slower training step: about three times a forward pass, measured on a part of a large batch."""
        part = images[:_PART]
        steps = {name: inference_step(network, part) for name, network in networks.items()}
        taken = seconds_in_turns(steps, range(2), images.device)
        return 3 * len(images) / len(part) * max(min(seconds) for seconds in taken.values())


def _growth(job: ScalingJob, name: str) -> int | None:
    torch.set_num_threads(job.threads)
    cpu = torch.device("cpu")
    network, (images, labels) = job._network(name, cpu), job._batch(cpu)
    training_step(zoo.resnet(8), torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))()  # what torch makes once
    return growth_at_peak(training_step(network, images, labels))


def scaling_jobs(network: str, size: Size, machine: Machine) -> list[ScalingJob]:
    """A job for every point of every axis.

    Args:
        network: whose batch and images grow.
        size: the points.
        machine: where they are measured.

    Raises:
        ConversionError: if there is no ResNet of a depth.
    """
    for depth in size.depths:
        with torch.device("meta"):
            zoo.resnet(depth)
    limits = (size.repeats, size.seconds, size.memory, torch.get_num_threads(), machine.describe())
    return [
        *(ScalingJob("batch", network, None, batch, _SIDE, *limits) for batch in size.batches),
        *(ScalingJob("side", network, None, 1, side, *limits) for side in size.sides),
        *(ScalingJob("depth", "resnet", depth, _DEPTH_BATCH, _SIDE, *limits) for depth in size.depths),
    ]
