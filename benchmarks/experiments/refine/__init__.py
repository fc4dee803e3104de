"""`python -m benchmarks refine`: finer stages that look at one window of the image, the papers' outlook."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from td_compiler.benchmarks.experiments.refine.section import refine_section
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.options import DataSets, Setup, run_command

__all__ = ["EXPERIMENT", "main"]

EXPERIMENT = Experiment("refine", refine_section)

_PARTS, _NETWORKS, _DATA = ["cost", "accuracy"], ["lenet_fc"], ["canvas:84:fashion-mnist"]
_COSTS = ["torchvision:resnet18", "torchvision:resnet50", "torchvision:vgg11"]
_PATCHES = [0.75, 0.5, 0.25]


def _refine(
    setup: Setup,
    networks: Annotated[
        list[str], typer.Argument(help="Trained: zoo:NAME, torchvision:NAME, timm:NAME or FILE.py.")
    ] = _NETWORKS,
    part: Annotated[list[str], typer.Option(metavar="NAME", help=f"Of {', '.join(_PARTS)}; repeatable.")] = _PARTS,
    cost: Annotated[list[str], typer.Option(metavar="NAME", help="Measured, not trained; repeatable.")] = _COSTS,
    side: Annotated[int, typer.Option(min=1, help="Of the images that cost is measured at.")] = 224,
    data: DataSets = _DATA,
    patch: Annotated[
        list[float], typer.Option(min=0.01, max=1, help="Windows' shares of the image's sides; repeatable.")
    ] = _PATCHES,
) -> None:
    """Measure what a window saves at ImageNet's size; train small networks with and without."""
    from td_compiler.benchmarks.experiments.refine.jobs import refine_jobs
    from td_compiler.benchmarks.training.networks import NetworkSpec

    unknown = next((name for name in part if name not in _PARTS), None)
    if unknown is not None:
        raise typer.BadParameter(f"{unknown!r} is not one of {', '.join(_PARTS)}", param_hint="--part")
    costs = [NetworkSpec(name, "mirror") for name in cost] if "cost" in part else []
    specs = [NetworkSpec(name, "mirror") for name in networks] if "accuracy" in part else []
    trainings = [setup.plan(spec, name, run) for name in data for spec in specs for run in setup.runs]
    EXPERIMENT.run(refine_jobs(costs, side, trainings, patch), setup)


main = partial(run_command, _refine)
