"""`python -m benchmarks scaling`: what networks cost against batch size, image side and depth."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer

from td_compiler.benchmarks.experiments.scaling.section import scaling_section
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.measuring import measure, run_measuring_command
from td_compiler.benchmarks.lab.options import Count, Setup

__all__ = ["EXPERIMENT", "main"]

EXPERIMENT = Experiment("scaling", scaling_section)

_NONE = list[int]()


def _scaling(
    setup: Setup,
    network: Annotated[str, typer.Argument(help="Whose batch and image grow; zoo:NAME, FILE.py, ...")] = "zoo:resnet20",
    batch: Annotated[list[int], typer.Option(metavar="N", min=1, help="Batch sizes; repeat for several.")] = _NONE,
    side: Annotated[list[int], typer.Option(metavar="N", min=8, help="Sides of the images; likewise.")] = _NONE,
    depth: Annotated[list[int], typer.Option(metavar="N", min=8, help="Layers of ResNets, 6n + 2.")] = _NONE,
    repeats: Count = None,
    seconds: Annotated[float | None, typer.Option(help="Leave out what takes longer for one step.")] = None,
    memory: Annotated[float | None, typer.Option(help="Leave out what takes more GiB.")] = None,
) -> None:
    """Measure time and memory of a network and of its top-down network, side by side, as their size grows.

    By default a profile's batch sizes, sides and depths; if any are given, only those.
    """
    from td_compiler.benchmarks.experiments.scaling.jobs import SIZES, scaling_jobs

    size = SIZES[setup.profile.name]
    if batch or side or depth:
        size = replace(size, batches=tuple(batch), sides=tuple(side), depths=tuple(depth))
    given: dict[str, Any] = {"repeats": repeats, "seconds": seconds, "memory": memory}
    size = replace(size, **{name: value for name, value in given.items() if value is not None})
    measure(EXPERIMENT, scaling_jobs(network, size, setup.machine), setup)


main = partial(run_measuring_command, _scaling)
