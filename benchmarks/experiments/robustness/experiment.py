"""The robustness experiment's command."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from td_compiler.benchmarks.experiments.robustness.jobs import AttackJob, CorruptionJob
from td_compiler.benchmarks.experiments.robustness.section import section
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.options import Arrangements, DataSets, Networks, Setup, run_command
from td_compiler.benchmarks.training.networks import NetworkSpec

__all__ = ["EXPERIMENT", "main"]

EXPERIMENT = Experiment("robustness", section)

# By profile: how many test images are attacked, in how many steps attacks search.
_SIZES = {"smoke": (50, 4), "quick": (500, 10), "paper": (None, 100)}

_NETWORKS, _DATA, _ARRANGEMENTS, _NONE = ["lenet_fc"], ["mnist"], ["bu", "mirror"], list[str]()


def _robustness(
    setup: Setup,
    networks: Networks = _NETWORKS,
    data: DataSets = _DATA,
    arrangement: Arrangements = _ARRANGEMENTS,
    attack: Annotated[list[str], typer.Option(help="Attacks; all by default.")] = _NONE,
    images: Annotated[int | None, typer.Option(min=1, help="Attack so many test images; else by profile.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of an attack's search; else by profile.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeat attacks that draw random numbers.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Images attacked at once.")] = 250,
    corruptions: Annotated[bool, typer.Option(help="Also measure errors under common corruptions.")] = True,
) -> None:
    """Attack networks and their top-down networks, and corrupt their images (paper, Exp. 2)."""
    own_images, own_steps = _SIZES[setup.profile.name]
    plain = replace(setup, profile=replace(setup.profile, test_images=None))  # jobs say how many images they look at
    trainings = [
        plain.plan(NetworkSpec(source, way), each, run)
        for each in data
        for source in networks
        for way in arrangement
        for run in setup.runs
    ]
    attacks = [
        AttackJob(training, name, images or own_images, steps or own_steps, repeats, batch_size)
        for training in trainings
        for name in _attacks(attack)
    ]
    corrupted = [CorruptionJob(training, setup.profile.test_images, batch_size) for training in trainings]
    EXPERIMENT.run([*attacks, *(corrupted if corruptions else [])], setup)


def _attacks(chosen: Sequence[str]) -> list[str]:
    from td_compiler.benchmarks.attacks.attacks import ATTACKS

    for name in chosen:
        if name not in ATTACKS:
            close = difflib.get_close_matches(name, ATTACKS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(ATTACKS)}{hint}", param_hint="--attack")
    return list(chosen or ATTACKS)


main = partial(run_command, _robustness)
