"""`python -m benchmarks segmentation`: semantic segmentation of a toy task (thesis exp 3, SPEC 6.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from benchmarks.experiments.segmentation.section import segmentation_section
from benchmarks.lab.experiment import Experiment
from benchmarks.lab.options import Setup, run_command

__all__ = ["EXPERIMENT", "main"]

EXPERIMENT = Experiment("segmentation", segmentation_section)

_NETWORKS, _NONE = ["fcn-light", "unet-like", "td"], list[str]()


def _segmentation(
    setup: Setup,
    network: Annotated[
        list[str], typer.Option(metavar="NAME", help="fcn-light, unet-like, td, td-uniform, td-reversed; repeatable.")
    ] = _NETWORKS,
    data: Annotated[str, typer.Option(help="Of what the meshes are made.")] = "fashion-mnist",
    side: Annotated[int, typer.Option(min=1, help="Images a side of a mesh.")] = 2,
    width: Annotated[int, typer.Option(min=1, help="Filters of the finest stage; 64 in the thesis.")] = 64,
    recipe: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="In place of the recipe's.")] = _NONE,
) -> None:
    """Train networks to name the class of every pixel, measure their intersection over union."""
    from benchmarks.experiments.segmentation.experiment import segmentation_jobs

    jobs = segmentation_jobs(network, f"meshes:{side}:{data}", width, setup.profile, setup.runs, recipe)
    EXPERIMENT.run(jobs, setup)


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the command line; returns the exit status."""
    return run_command(_segmentation, arguments, prog)
