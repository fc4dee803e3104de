"""What the experiments share that measure costs and train nothing: their options, and a page of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.jobs import Job
from td_compiler.benchmarks.lab.journal import Results
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.options import Setup, check_device, check_profile, run_command
from td_compiler.benchmarks.training.recipes import PROFILES
from td_compiler.files import write_whole

__all__ = ["measure", "progress", "run_measuring_command"]


def _shared(
    profile: Annotated[str, typer.Option(metavar="|".join(PROFILES), help="Size of the experiment.")] = "quick",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results go.")] = Path("build/benchmarks"),
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:1.")] = "auto",
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of torch on the CPU.")] = None,
    progress: Annotated[bool, typer.Option(help="Show a bar for each measurement.")] = True,
) -> Setup:
    """The shared options as a Setup; the first parameter of every such command."""
    import torch

    check_profile(profile)
    machine = Machine(out.resolve(), data_root=out, device=device, progress=progress)
    check_device(machine)
    if threads is not None:
        torch.set_num_threads(threads)
    return Setup(machine, PROFILES[profile])


def run_measuring_command(command: Callable[..., None], arguments: Sequence[str], prog: str) -> int:
    """As `td_compiler.benchmarks.lab.options.run_command`, without the options of trainings."""
    return run_command(command, arguments, prog, shared=_shared)


def measure(experiment: Experiment, jobs: Sequence[Job], setup: Setup) -> None:
    """Run the jobs, show their results, and write all that `OUT` has of the experiment as `OUT/EXPERIMENT.md`.

    Raises:
        as `Experiment.run`.
    """
    from td_compiler.benchmarks.show.document import Document
    from td_compiler.benchmarks.show.style import save

    experiment.run(jobs, setup)
    found = Results(setup.machine.results).read().values()
    results = [result for result in found if result.experiment == experiment.name]
    section = experiment.shown(results)
    versions = {", ".join(f"{name} {version}" for name, version in result.versions.items()) for result in results}
    for figure in section.figures:
        save(figure.draw, setup.machine.figures / f"{figure.name}.svg")
    page = Document(f"Experiment {experiment.name}", "", [section], [f"Made with {line}." for line in sorted(versions)])
    write_whole(setup.machine.out / f"{experiment.name}.md", page.markdown("figures"))


def progress(repeats: int, machine: Machine, title: str) -> Iterable[int]:
    """The numbers of the repeats, with a bar that goes when they are done."""
    from rich.console import Console
    from rich.progress import track

    shown = machine.shows_progress
    return track(range(repeats), title, console=Console(stderr=True), transient=True, disable=not shown)
