"""What is trained and measured in the frequency experiment (thesis 3.2, SPEC 6.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from td_compiler.benchmarks.data.datasets import load, opened
from td_compiler.benchmarks.data.filters import SIGMAS
from td_compiler.benchmarks.data.frequencies import blurred
from td_compiler.benchmarks.data.parts import PARTS
from td_compiler.benchmarks.experiments.frequency.growing import GrowingNet
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.training.batches import shuffled, split
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.training import Builder, Trained, Training, evaluate, trained

__all__ = ["FilterJob", "GrowingJob", "frequency_jobs"]


@dataclass(frozen=True)
class FilterJob:
    """Train on one data set, test on several.

    Attributes:
        part: a key of `td_compiler.benchmarks.data.parts.PARTS`.
        base: the data set that all are variants of.
        training: what is trained.
        tests: the names of the data sets that it is tested on.
    """

    experiment: ClassVar[str] = "frequency"
    revision: ClassVar[int] = 2

    part: str
    base: str
    training: Training
    tests: tuple[str, ...]

    @property
    def data(self) -> str:
        """The data set that is trained on."""
        return self.training.data

    @property
    def name(self) -> str:
        """One line for progress and logs."""
        return f"{self.part}: {self.training.name}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """The accuracy, from 0 to 1, by the name of the test set."""
        found = trained(self.training, machine)
        tests = {name: load(name, machine, train=False, limit=self.training.test_images) for name in self.tests}
        accuracy = {name: evaluate(found.network, data) for name, data in tests.items()}
        counts = {"train_images": found.train_images, "test_images": len(next(iter(tests.values())))}
        return {"accuracy": accuracy, **counts}


@dataclass(frozen=True)
class GrowingJob:
    """Train a top-down network stage by stage, each from the weights of the network with one stage less.

    Attributes:
        base: the data set.
        training: of the whole network; its epochs are shared among the stages, at least one each.
        frozen: keep what was trained before as it is.
    """

    experiment: ClassVar[str] = "frequency"
    revision: ClassVar[int] = 2

    base: str
    training: Training
    frozen: bool
    part: str = "growing"

    @property
    def data(self) -> str:
        """The data set that is trained on."""
        return self.training.data

    @property
    def name(self) -> str:
        """One line for progress and logs."""
        return f"{self.part}: {self.training.name}{', frozen' if self.frozen else ''}"

    def run(self, machine: Machine) -> dict[str, Any]:
        """The accuracy, from 0 to 1, with one stage, two stages, ... all, and the epochs that each was trained for."""
        data = opened(self.data, machine, train=True, limit=self.training.train_images)
        count = len(self._whole(data.input_size, len(data.classes)).td.scales)
        epochs = _shares(self.training.recipe.epochs, count)
        kept, _ = split(len(data), self.training.recipe.held_out, self.training.run)
        steps = len(shuffled(kept, self.training.recipe.batch_size, self.training.run, 0))
        grown: list[Trained] = []
        for stages, share in enumerate(epochs, start=1):
            ramp = math.ceil(share * steps / 2)  # staged in over the first half, fine-tuned in the second
            build = self._builder(stages, ramp, grown[-1] if grown else None)
            grown.append(trained(self._step(stages, count, share), machine, build=build))
        return {"accuracy": [each.accuracy for each in grown], "epochs": epochs, **grown[-1].counts}

    def _step(self, stages: int, count: int, epochs: int) -> Training:
        frozen = ", frozen" if self.frozen and stages > 1 else ""
        variant = f"grown to {stages} of {count} stages{frozen}"
        return replace(self.training, recipe=replace(self.training.recipe, epochs=epochs), variant=variant)

    def _whole(self, size: tuple[int, int, int], classes: int) -> GrowingNet:
        """The network with its first stage alone."""
        td: Any = self.training.network.build(size, classes)
        return GrowingNet(td, classes, stages=1, ramp=1)

    def _builder(self, stages: int, ramp: int, smaller: Trained | None) -> Builder:
        def build(size: tuple[int, int, int], classes: int) -> GrowingNet:
            td: Any = self.training.network.build(size, classes)
            network = GrowingNet(td, classes, stages=stages, ramp=ramp, frozen=self.frozen)
            if smaller is not None:
                before: Any = smaller.network.net
                network.grow_from(before)
            return network

        return build


def _shares(epochs: int, stages: int) -> list[int]:
    """Epochs in equal parts, at least one each; the last stage, the whole network, gets what is left over."""
    each = max(1, epochs // stages)
    return [each] * (stages - 1) + [max(1, epochs - each * (stages - 1))]


Plan = Callable[[NetworkSpec, str, int], Training]


def frequency_jobs(
    parts: Sequence[str],
    specs: Sequence[NetworkSpec],
    data: Sequence[str],
    radii: Sequence[float],
    runs: Sequence[int],
    plan: Plan,
) -> list[FilterJob | GrowingJob]:
    """The jobs of some parts of the experiment.

    Args:
        parts: keys of `td_compiler.benchmarks.data.parts.PARTS`.
        specs: the networks; the parts that are about top-down networks leave bottom-up ones out.
        data: the data sets. The part `cosines` has its own.
        radii: of the Fourier masks, in cycles per image side.
        runs: the seeds.
        plan: says how a network is trained on a data set in a run.

    Raises:
        ValueError: if there is no such part.
    """
    unknown = next((part for part in parts if part not in PARTS), None)
    if unknown is not None:
        raise ValueError(f"There is no part {unknown!r}, only {', '.join(PARTS)}.")
    jobs: list[FilterJob | GrowingJob] = []
    for part in parts:
        for base in ["cosines"] if part == "cosines" else data:
            for spec in specs:
                for run in runs:
                    trainings = _on(plan(spec, base, run))
                    jobs += _JOBS[part](part, base, trainings, radii)
    return jobs


Variants = Callable[..., Training]


def _on(training: Training) -> Variants:
    """The same training on another data set, or with another `downsample` of the top-down network."""

    def variant(data: str | None = None, downsample: str | None = None) -> Training:
        options = (*training.network.options, *((("downsample", downsample),) if downsample else ()))
        return replace(training, data=data or training.data, network=replace(training.network, options=options))

    return variant


def _blur(part: str, base: str, on: Variants, radii: Sequence[float]) -> Iterator[FilterJob]:
    names = tuple(blurred(base, sigma) for sigma in SIGMAS)
    for name in names:
        yield FilterJob(part, base, on(name), names)


def _fourier(part: str, base: str, on: Variants, radii: Sequence[float]) -> Iterator[FilterJob]:
    filtered = [f"{kind}:{radius:g}:{base}" for radius in radii for kind in ("lowpass", "highpass")]
    yield FilterJob(part, base, on(), (base,))
    for name in filtered:
        yield FilterJob(part, base, on(name), (base, name))


def _laplacian(part: str, base: str, on: Variants, radii: Sequence[float]) -> Iterator[FilterJob]:
    yield FilterJob(part, base, on(), (base,))
    if on().network.arrangement != "bu":
        yield FilterJob(part, base, on(downsample="laplacian"), (base,))


def _growing(part: str, base: str, on: Variants, radii: Sequence[float]) -> Iterator[FilterJob | GrowingJob]:
    yield FilterJob(part, base, on(), (base,))
    if on().network.arrangement != "bu":
        yield GrowingJob(base, on(), frozen=False)
        yield GrowingJob(base, on(), frozen=True)


_JOBS: dict[str, Callable[[str, str, Variants, Sequence[float]], Iterator[Any]]] = {
    "blur": _blur,
    "cosines": _blur,
    "fourier": _fourier,
    "laplacian": _laplacian,
    "growing": _growing,
}
