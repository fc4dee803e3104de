"""What is measured of one network: its emitted top-down network beside the same network written out plainly."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from td_compiler import TopDownNet, reverse
from td_compiler.benchmarks.experiments.speed.handwritten import HANDWRITTEN, handwritten
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.memory import saved_bytes
from td_compiler.benchmarks.lab.resident import growth_at_peak, in_own_process
from td_compiler.benchmarks.lab.steps import peak_of_step, seconds_in_turns, seconds_of_steps, training_step
from td_compiler.benchmarks.training.networks import source_content
from td_compiler.emission import emit_source
from td_compiler.sources.names import load_source

__all__ = ["SpeedJob", "speed_jobs"]

# The papers' networks, (batch, image side): NIN's batch is smaller than theirs, for the sake of CPUs.
PAPERS = {"zoo:lenet_fc": (128, 28), "zoo:nin_light": (128, 28), "zoo:nin": (32, 32), "zoo:resnet32": (128, 32)}
OTHERS = (8, 64)
_REPEATS = {"smoke": 2, "quick": 7, "paper": 25}
_PRODUCT = 2048  # rows and columns of the matrices whose product is the machine's rate


@dataclass(frozen=True)
class SpeedJob:
    """Measure one network's emitted top-down network and the plain one, in one process, their steps taking turns.

    Attributes:
        network: a source as the command line names it.
        batch, side: the images are (batch, C, side, side).
        bf16: autocast to bfloat16.
        compiled: both networks by `torch.compile`.
        plain_layout: of the plain network: `contiguous`, as PyTorch makes it, or `channels_last`.
        repeats: measurements of each time.
        threads: of torch.
        device: what it is measured on, in words.
    """

    experiment: ClassVar[str] = "speed"
    revision: ClassVar[int] = 1
    data: ClassVar[str] = ""

    network: str
    batch: int
    side: int
    bf16: bool
    compiled: bool
    plain_layout: str
    repeats: int
    threads: int
    device: str

    @property
    def name(self) -> str:
        """One line for progress and logs."""
        ways = [way for way, on in (("bf16", self.bf16), ("compiled", self.compiled)) if on]
        return ", ".join([f"{self.network} on {self.batch} x {self.side} x {self.side}", *ways, self.plain_layout])

    @property
    def is_handwritten(self) -> bool:
        """Whether the plain network is one written by hand; else it is the compiler's with `fast=False`."""
        return self.network.removeprefix("zoo:") in HANDWRITTEN

    def content(self) -> str:
        """What the job's key holds of the source."""
        return source_content(self.network)

    def run(self, machine: Machine) -> dict[str, Any]:
        """For `plain` and `emitted`: MACs, seconds of steps, bytes; and the machine's rate at products of matrices."""
        torch.set_num_threads(self.threads)
        device = machine.torch_device
        networks = {form: self.network_of(form, device) for form in ("plain", "emitted")}
        levels, labels = self.given(device)
        figures: dict[str, Any] = {form: {"macs": self.batch * self.macs(form)} for form in networks}
        measured = seconds_of_steps(networks, levels, labels, self.repeats, machine, self.name)
        for kind, taken in measured.items():
            for form, seconds in taken.items():
                figures[form][kind] = seconds
        for form, network in networks.items():
            figures[form]["saved"] = None if self.compiled else saved_bytes(network, levels)
            figures[form]["peak"] = peak_of_step(network, levels, labels, partial(self._growth_elsewhere, form))
        return {**figures, "rate": self._rate(device)}

    def top_down(self, device: str, *, fast: bool) -> TopDownNet:
        """The compiler's network."""
        source = load_source(self.network, {}, device=device)
        channels = source.input_size[0] if source.input_size else 3
        return reverse(source.model, fast=fast, input_size=(channels, self.side, self.side))

    def macs(self, form: str) -> int:
        """Products for one image."""
        report = self.top_down("meta", fast=form == "emitted").report
        return sum(stage.top_down.macs for stage in report.stages)

    def network_of(self, form: str, device: torch.device) -> nn.Module:
        """A network that takes the pyramid's levels."""
        torch.manual_seed(0)
        if form == "emitted":
            network: nn.Module = OnLevels(_emitted(self.top_down("cpu", fast=True)))
        elif self.is_handwritten:
            network = handwritten(self.network.removeprefix("zoo:"), "mirror")
        else:
            network = OnLevels(self.top_down("cpu", fast=False))
        if form == "plain" and self.plain_layout == "channels_last":
            network = network.to(memory_format=torch.channels_last)
        network = Autocast(network, device.type) if self.bf16 else network
        network = network.to(device)
        return torch.compile(network) if self.compiled else network  # type: ignore[return-value]

    def given(self, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """The levels of random images, finest first, and labels."""
        td = self.top_down("meta", fast=True)
        shape = (self.batch, td.report.input_size[0], self.side, self.side)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        return td.pyramid(images.to(device)), torch.zeros(self.batch, dtype=torch.long, device=device)

    def _growth_elsewhere(self, form: str) -> int | None:
        return None if self.compiled else in_own_process(_growth, self, form)

    def _rate(self, device: torch.device) -> float:
        """Floating-point operations a second of a product of matrices, the best of ten."""
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        one, other = torch.randn(2, _PRODUCT, _PRODUCT, device=device, dtype=dtype)
        seconds = seconds_in_turns({"product": lambda: one @ other}, range(10), device)["product"]
        return float(2 * _PRODUCT**3 / min(seconds))


class OnLevels(nn.Module):
    """A top-down network that takes the pyramid's levels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Class scores (N, K) for the images at every scale, finest first."""
        scores: Tensor = self.network.forward_pyramid(levels)  # type: ignore[operator]
        return scores


class Autocast(nn.Module):
    """A network that runs under autocast to bfloat16."""

    def __init__(self, network: nn.Module, device_type: str) -> None:
        super().__init__()
        self.network, self.device_type = network, device_type

    def forward(self, levels: list[Tensor]) -> Tensor:
        """As the network, in float32."""
        with torch.autocast(self.device_type, torch.bfloat16):
            scores: Tensor = self.network(levels)
        return scores.float()


def _emitted(td: TopDownNet) -> nn.Module:
    """The network that the emitted source is, with the same weights."""
    module = types.ModuleType("emitted")
    exec(compile(emit_source(td, class_name="Net", origin=td.report.source), "<emitted>", "exec"), module.__dict__)
    network: nn.Module = module.__dict__["Net"]()
    network.load_state_dict(td.state_dict())
    return network


def _growth(job: SpeedJob, form: str) -> int | None:
    torch.set_num_threads(job.threads)
    cpu = torch.device("cpu")
    network, (levels, labels) = job.network_of(form, cpu), job.given(cpu)
    small = [level[:1] for level in levels]
    training_step(job.network_of(form, cpu), small, labels[:1])()  # what torch makes once
    return growth_at_peak(training_step(network, levels, labels))


def speed_jobs(
    networks: Sequence[str],
    machine: Machine,
    profile: str,
    batch: int | None,
    side: int | None,
    repeats: int | None,
    *,
    compiled: bool,
    bf16: bool,
) -> list[SpeedJob]:
    """A job for every network and every way to run it.

    Args:
        networks: sources; the papers' if empty.
        machine: where they are measured.
        profile: gives the repeats where none are given.
        batch, side: in place of each network's own.
        repeats: measurements of each time.
        compiled: also with `torch.compile`.
        bf16: also under autocast to bfloat16, as always on a GPU.
    """
    on_gpu = machine.torch_device.type == "cuda"
    precisions = (False, True) if bf16 or on_gpu else (False,)
    compilations = (False, True) if compiled else (False,)
    count, threads, device = repeats or _REPEATS[profile], torch.get_num_threads(), machine.describe()
    return [
        SpeedJob(network, size[0], size[1], precise, whole, layout, count, threads, device)
        for network, size in _sized(networks or list(PAPERS), batch, side)
        for precise, whole, layout in itertools.product(precisions, compilations, ("contiguous", "channels_last"))
    ]


def _sized(networks: Sequence[str], batch: int | None, side: int | None) -> Iterator[tuple[str, tuple[int, int]]]:
    for given in networks:
        network = given if ":" in given or given.endswith(".py") else f"zoo:{given}"
        own_batch, own_side = PAPERS.get(network, OTHERS)
        yield network, (batch or own_batch, side or own_side)
