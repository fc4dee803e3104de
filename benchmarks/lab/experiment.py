"""What an experiment is, and how its command runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from td_compiler.benchmarks.show.tables import Section, show

if TYPE_CHECKING:
    from td_compiler.benchmarks.lab.jobs import Job, Result
    from td_compiler.benchmarks.lab.options import Setup

__all__ = ["Experiment"]


@dataclass(frozen=True)
class Experiment:
    """One experiment of the papers, or beyond them.

    Attributes:
        name: as on the command line and in results.
        section: what its results show; all of one experiment, in any order, from any number of commands.
    """

    name: str
    section: Callable[[Sequence[Result]], Section]

    def shown(self, results: Sequence[Result]) -> Section:
        """What its results show, with the commands that made them."""
        return replace(self.section(results), commands=tuple(dict.fromkeys(result.command for result in results)))

    def run(self, jobs: Sequence[Job], setup: Setup) -> None:
        """Run the jobs, print the tables of their results, write the figures.

        Raises:
            as `td_compiler.benchmarks.lab.jobs.run_jobs`.
        """
        from rich.console import Console

        from td_compiler.benchmarks.lab.jobs import run_jobs
        from td_compiler.benchmarks.show.style import save

        results = run_jobs(jobs, setup.machine, processes=setup.processes, ray=setup.ray, command=setup.command)
        if setup.machine.rank:
            return
        section = self.shown(results)
        console = Console()
        for table in section.tables:
            show(table, console)
        for figure in section.figures:
            path = setup.machine.figures / f"{figure.name}.png"
            save(figure.draw, path)
            console.print(f"{figure.title}: {path}", highlight=False, soft_wrap=True)
