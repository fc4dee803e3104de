"""Steps of networks, and how long they take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.measuring import progress
from td_compiler.benchmarks.lab.memory import cuda_growth_at_peak

__all__ = ["inference_step", "peak_of_step", "seconds_in_turns", "seconds_of_steps", "training_step"]

K = TypeVar("K")
Images = Tensor | list[Tensor]  # (N, C, H, W), or the levels of a pyramid

_SHORTEST = 0.02  # seconds; shorter steps are measured several at once


def inference_step(network: nn.Module, images: Images, labels: Tensor | None = None) -> Callable[[], object]:
    """A forward pass without gradients; puts the network into evaluation mode."""
    network.eval()

    def step() -> Tensor:
        with torch.inference_mode():
            scores: Tensor = network(images)
        return scores

    return step


def training_step(network: nn.Module, images: Images, labels: Tensor) -> Callable[[], object]:
    """Loss for labels (N,), gradients and a step of plain SGD; puts the network into training mode."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def seconds_in_turns(
    steps: Mapping[K, Callable[[], object]], repeats: Iterable[object], device: torch.device
) -> dict[K, list[float]]:
    """Seconds of every step, one for each repeat.

    The steps take turns, so that what else the machine does meets all of them. Each is done once before.
    """
    counts = {name: max(1, math.ceil(_SHORTEST / max(_seconds(step, 1, device), 1e-6))) for name, step in steps.items()}
    seconds: dict[K, list[float]] = {name: [] for name in steps}
    for _ in repeats:
        for name, step in steps.items():
            seconds[name].append(_seconds(step, counts[name], device))
    return seconds


def seconds_of_steps(
    networks: Mapping[K, nn.Module], images: Images, labels: Tensor, repeats: int, machine: Machine, title: str
) -> dict[str, dict[K, list[float]]]:
    """Seconds of the networks' steps of `inference` and of `training`, in turns, with a bar for each kind."""
    return {
        kind: seconds_in_turns(
            {name: step(network, images, labels) for name, network in networks.items()},
            progress(repeats, machine, f"{title}, {kind}"),
            labels.device,
        )
        for kind, step in (("inference", inference_step), ("training", training_step))
    }


def peak_of_step(network: nn.Module, images: Images, labels: Tensor, elsewhere: Callable[[], int | None]) -> int | None:
    """Bytes that a training step takes at its peak, above those of the network and the images.

    A GPU counts its own; on a CPU it is what `elsewhere` finds, which is to ask a process of its own.
    """
    if labels.device.type == "cuda":
        return cuda_growth_at_peak(training_step(network, images, labels), labels.device)
    return elsewhere()


def _seconds(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Of one of `count` steps."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return (time.perf_counter() - start) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
