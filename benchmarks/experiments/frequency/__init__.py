"""`python -m benchmarks frequency`: what networks make of low and of high frequencies (thesis 3.2, SPEC 6.4)."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from td_compiler.benchmarks.data.parts import PARTS
from td_compiler.benchmarks.experiments.frequency.section import frequency_section
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.options import Arrangements, DataSets, Networks, Setup, run_command

__all__ = ["EXPERIMENT", "main"]

EXPERIMENT = Experiment("frequency", frequency_section)

_NETWORKS, _DATA, _WAYS = ["lenet_fc"], ["fashion-mnist"], ["bu", "mirror"]
_PARTS, _RADII = list(PARTS), [5.0]


def _frequency(
    setup: Setup,
    networks: Networks = _NETWORKS,
    part: Annotated[list[str], typer.Option(metavar="NAME", help=f"Of {', '.join(PARTS)}; repeatable.")] = _PARTS,
    data: DataSets = _DATA,
    arrangement: Arrangements = _WAYS,
    radius: Annotated[
        list[float], typer.Option(min=0, help="Of the Fourier masks, in cycles per image side; repeatable.")
    ] = _RADII,
) -> None:
    """Train networks on images that lack frequencies, and top-down networks in other ways (thesis 3.2)."""
    from td_compiler.benchmarks.experiments.frequency.jobs import frequency_jobs
    from td_compiler.benchmarks.training.networks import NetworkSpec

    specs = [NetworkSpec(name, way) for name in networks for way in arrangement]
    EXPERIMENT.run(frequency_jobs(part, specs, data, radius, setup.runs, setup.plan), setup)


main = partial(run_command, _frequency)
