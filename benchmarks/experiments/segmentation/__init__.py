"""`python -m benchmarks segmentation`: semantic segmentation of a toy task (thesis exp 3, SPEC 6.5)."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from td_compiler.benchmarks.experiments.segmentation.section import segmentation_section
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.options import Setup, run_command

__all__ = ["EXPERIMENT", "main"]

EXPERIMENT = Experiment("segmentation", segmentation_section)

_NETWORKS = ["fcn-light", "unet-like", "td"]


def _segmentation(
    setup: Setup,
    network: Annotated[
        list[str], typer.Option(metavar="NAME", help="fcn-light, unet-like, td, td-uniform, td-reversed; repeatable.")
    ] = _NETWORKS,
    data: Annotated[str, typer.Option(help="Of what the meshes are made.")] = "fashion-mnist",
    side: Annotated[int, typer.Option(min=1, help="Images a side of a mesh.")] = 2,
    width: Annotated[int, typer.Option(min=1, help="Filters of the finest stage; 64 in the thesis.")] = 64,
) -> None:
    """Train networks to name the class of every pixel, measure their intersection over union."""
    from td_compiler.benchmarks.experiments.segmentation.experiment import SegmentationJob
    from td_compiler.benchmarks.experiments.segmentation.networks import spec_of

    specs, meshes = [spec_of(name, width) for name in network], f"meshes:{side}:{data}"
    plans = [setup.plan(spec, meshes, run, task="segmentation") for run in setup.runs for spec in specs]
    EXPERIMENT.run([SegmentationJob(plan) for plan in plans], setup)


main = partial(run_command, _segmentation)
