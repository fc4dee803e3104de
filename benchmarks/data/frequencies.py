"""The data sets of this experiment, as rows of the common table: `cosines`, and filtered variants of any other.

`blur:0.6:mnist` is MNIST blurred with sigma = 0.6 pixels, `lowpass:5:mnist` and `highpass:5:mnist` are what a Fourier
mask of radius 5 keeps and takes away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from td_compiler.benchmarks.data.cosines import cosines
from td_compiler.benchmarks.data.datasets import DATASETS, DataError, Derived, Images
from td_compiler.benchmarks.data.filters import blur, high_pass, low_pass
from td_compiler.benchmarks.data.images import as_float
from td_compiler.benchmarks.lab.machine import Machine

__all__ = ["Cosines", "blurred"]

_CHUNK = 2_000  # images filtered at once: a Fourier transform takes several times their memory


def blurred(base: str, sigma: float) -> str:
    """The name of a data set blurred with `sigma`; 0 is the data set itself."""
    return f"blur:{sigma:g}:{base}" if sigma else base


@dataclass(frozen=True)
class Cosines:
    """The toy set of single frequencies."""

    revision: int = 2

    def title(self, argument: str) -> str:
        return "Cosines"

    def read(self, argument: str, machine: Machine, train: bool) -> Images:
        if argument:
            raise DataError(f"cosines takes no argument, so cosines:{argument} names no data set.")
        return cosines(train=train)

    def fingerprint(self, argument: str, machine: Machine) -> str:
        return f"cosines-{self.revision}"


def _filtered(apply: Callable[[torch.Tensor, float], torch.Tensor]) -> Callable[[Images, str, bool], Images]:
    """What makes filtered images, floating, of a data set's and the filter's size as text."""

    def change(base: Images, argument: str, train: bool) -> Images:
        size = _size(argument)
        # Half precision is 16 times finer than grey levels are, in half the memory of single precision.
        chunks = [apply(as_float(chunk), size).half() for chunk in base.cropped().images.split(_CHUNK)]
        return replace(base, images=torch.cat(chunks), crop=None)

    return change


def _size(argument: str) -> float:
    try:
        size = float(argument)
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise DataError(f"{argument!r} is no size of a filter: give a number of pixels (blur) or cycles, such as 2.4.")
    return size


DATASETS["cosines"] = Cosines()
DATASETS["blur"] = Derived(lambda sigma, base: f"{base}, blurred (sigma {sigma})", _filtered(blur))
DATASETS["lowpass"] = Derived(lambda radius, base: f"{base}, low frequencies (radius {radius})", _filtered(low_pass))
DATASETS["highpass"] = Derived(lambda radius, base: f"{base}, high frequencies (radius {radius})", _filtered(high_pass))
