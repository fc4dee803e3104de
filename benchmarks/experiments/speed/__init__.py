"""`python -m benchmarks speed`: emitted top-down networks against the same networks written out plainly."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from td_compiler.benchmarks.experiments.speed.section import speed_section
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.measuring import measure, run_measuring_command
from td_compiler.benchmarks.lab.options import Count, Setup

__all__ = ["EXPERIMENT", "main"]

EXPERIMENT = Experiment("speed", speed_section)

_NONE = list[str]()


def _speed(
    setup: Setup,
    networks: Annotated[
        list[str],
        typer.Argument(help="zoo:NAME, torchvision:NAME, timm:NAME or FILE.py; by default those of the papers."),
    ] = _NONE,
    batch: Annotated[int | None, typer.Option(metavar="N", min=1, help="Images in a step; else by network.")] = None,
    side: Annotated[int | None, typer.Option(metavar="N", min=8, help="Of the images; else by network.")] = None,
    repeats: Count = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also with torch.compile, which takes minutes.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Also under autocast to bfloat16; always on a GPU.")] = False,
) -> None:
    """Measure inference and training steps of emitted networks and of plain ones, in turns."""
    from td_compiler.benchmarks.experiments.speed.jobs import speed_jobs

    jobs = speed_jobs(networks, setup.machine, setup.profile.name, batch, side, repeats, compiled=compiled, bf16=bf16)
    measure(EXPERIMENT, jobs, setup)


main = partial(run_measuring_command, _speed)
