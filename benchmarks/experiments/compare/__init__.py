"""Is the top-down version of a network better, and at what? One network, one data set, one page (SPEC 10)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from td_compiler.benchmarks.data.objects import known_objects, load_objects
from td_compiler.benchmarks.experiments.compare.jobs import MEASURES, Compare, Size, seconds_needed
from td_compiler.benchmarks.experiments.compare.section import section, summary
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.jobs import job_key
from td_compiler.benchmarks.lab.journal import Results
from td_compiler.benchmarks.lab.options import Setup, run_command
from td_compiler.benchmarks.lab.statistics import FEWEST_RUNS
from td_compiler.benchmarks.lab.table import slug
from td_compiler.benchmarks.training.networks import ARRANGEMENTS, Costs, NetworkSpec
from td_compiler.benchmarks.training.recipes import FAST
from td_compiler.errors import ConversionError
from td_compiler.files import write_together

__all__ = ["EXPERIMENT", "main"]

EXPERIMENT = Experiment("compare", section)

# By profile: how many test images are attacked and explained, in how many steps attacks search.
_SIZES = {"smoke": (50, 4), "quick": (200, 10), "paper": (1_000, 50)}
_MIRROR, _NONE = ["mirror"], list[str]()


def _compare(
    setup: Setup,
    source: Annotated[
        str, typer.Argument(help="FILE.py, FILE.py:NAME, or NAME of zoo:, torchvision:, timm:, pytorchcv:.")
    ],
    data: Annotated[str, typer.Option(help="folder:PATH or folder:PATH@SIZE, mnist, fashion-mnist, cifar10, ...")],
    filters: Annotated[
        list[str], typer.Option(help=f"Of {', '.join(ARRANGEMENTS[1:])}; repeat for several.")
    ] = _MIRROR,
    measure: Annotated[
        list[str], typer.Option(help="Of what there is; all by default. `answers` is always there.")
    ] = _NONE,
    without: Annotated[list[str], typer.Option(help="Leave out a measure, such as `pointwise`, the slowest.")] = _NONE,
    few: Annotated[int | None, typer.Option(min=2, help="Attack and explain so many images; else by profile.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of an attack's search; else by profile.")] = None,
    bound: Annotated[
        float, typer.Option(min=0, max=1, help="Largest change of a value, of 1, for the worst of several attacks.")
    ] = 2 / 255,
    objects: Annotated[
        str,
        typer.Option(
            metavar="bright",
            help="Objects are the bright pixels of images on black ground; else those of a folder's masks or boxes.",
        ),
    ] = "",
    equal_compute: Annotated[
        bool, typer.Option("--equal-compute", help="Also train BU for as many products as TD has.")
    ] = False,
    floor: Annotated[
        float | None, typer.Option(help="Accuracy in % that BU must reach for anything to be said of it.")
    ] = None,
) -> None:
    """Is the top-down network of a network better, and at what? Trains both alike, at least 3 times, and measures both.

    Accuracy, calibration, shifts, corruptions, attacks, heat maps and cost: one table says of each whether top-down is
    better, worse or undecided, with the 95 % interval. Fewer than 3 runs give no verdict. Without --recipe the recipe
    is `fast`.
    """
    chosen = _measures(measure, without)
    if objects not in ("", "bright"):
        raise typer.BadParameter(f"{objects!r} is not bright", param_hint="--objects")
    wrong = [each for each in filters if each not in ARRANGEMENTS[1:]]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not one of {', '.join(ARRANGEMENTS[1:])}", param_hint="--filters")
    specs = [NetworkSpec(source), *(NetworkSpec(source, each, setup.options) for each in dict.fromkeys(filters))]
    data, costs = _fitting(specs, data, setup)
    own_few, own_steps = _SIZES[setup.profile.name]
    size = Size(setup.profile.test_images, few or own_few, steps or own_steps, bound, objects or known_objects(data))
    if size.objects in ("masks", "boxes"):
        load_objects(data, setup.machine, size.images)  # what is missing or damaged is said before anything is trained
    jobs = _jobs(specs, data, setup, size, chosen)
    if equal_compute:
        jobs += _longer(specs, costs, data, setup, size)
    _forecast(jobs, setup)
    replace(EXPERIMENT, section=partial(section, floor=floor)).run(jobs, setup)
    if not setup.machine.rank:
        _write_page(jobs, setup, floor)


def _measures(given: Sequence[str], without: Sequence[str]) -> list[str]:
    for option, names in (("--measure", given), ("--without", without)):
        wrong = [name for name in names if name not in MEASURES]
        if wrong:
            raise typer.BadParameter(f"{wrong[0]!r} is not one of {', '.join(MEASURES)}", param_hint=option)
    chosen = set(given or MEASURES) - set(without) | {"answers"}
    return [name for name in MEASURES if name in chosen]


def _fitting(specs: Sequence[NetworkSpec], data: str, setup: Setup) -> tuple[str, list[Costs]]:
    """The data set, grey images in three channels for networks that take no other, and what the networks cost.

    Raises:
        ConversionError: if a network does not fit the images or cannot be converted; nothing has been trained then.
    """
    from td_compiler.benchmarks.data.datasets import opened

    def costs(name: str) -> list[Costs]:
        found = opened(name, setup.machine, train=True)
        opened(name, setup.machine, train=False)
        return [spec.costs(found.input_size, len(found.classes)) for spec in specs]

    try:
        return data, costs(data)
    except ConversionError:
        if opened(data, setup.machine, train=True).input_size[0] != 1:
            raise
        colour = f"channels:3:{data}"
        try:
            found = costs(colour)
        except ConversionError:
            found = []
        if not found:
            raise
    print(f"{specs[0].name} takes images of three channels: the grey ones of {data} are given as such", file=sys.stderr)
    return colour, found


def _jobs(specs: Sequence[NetworkSpec], data: str, setup: Setup, size: Size, chosen: Sequence[str]) -> list[Compare]:
    """Run by run, so that an interrupted comparison has whole runs; what a network costs is measured once."""
    plain = _plain(setup)
    jobs = []
    for run in setup.runs:
        for spec in specs:
            training = plain.plan(spec, data, run)
            once = spec.arrangement == "bu" or run != setup.seed
            jobs += [Compare(training, name, size) for name in chosen if not (name == "cost" and once)]
    return jobs


def _plain(setup: Setup) -> Setup:
    """Trainings do not depend on how many test images there are: jobs say it."""
    return replace(setup, profile=replace(setup.profile, test_images=None))


def _longer(specs: Sequence[NetworkSpec], costs: Sequence[Costs], data: str, setup: Setup, size: Size) -> list[Compare]:
    """The bottom-up network, trained for as many epochs more as a top-down network has more products."""
    epochs = _plain(setup).plan(specs[0], data, setup.seed).recipe.epochs
    lengths = {max(1, round(epochs * each.macs / costs[0].macs)) for each in costs[1:]} - {epochs}
    jobs = []
    for length in sorted(lengths):
        longer = replace(setup, recipe=(*setup.recipe, f"epochs={length}"))
        jobs += [Compare(_plain(longer).plan(specs[0], data, run), "answers", size) for run in setup.runs]
    return jobs


def _forecast(jobs: Sequence[Compare], setup: Setup) -> None:
    """Say how long what is not done yet will take."""
    machine = setup.machine
    done = Results(machine.results).read()
    waiting = [job for job in jobs if job_key(job, machine) not in done]
    if not waiting or machine.rank:
        return
    seconds = seconds_needed(waiting, machine)
    each = ", ".join(f"{label} {_duration(needed)}" for label, needed in seconds.items())
    total = _duration(sum(seconds.values()) / setup.processes)
    print(f"{len(waiting)} of {len(jobs)} jobs to do, about {total} here ({each})", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _write_page(jobs: Sequence[Compare], setup: Setup, floor: float | None) -> None:
    """The page of this comparison, as HTML and Markdown."""
    from td_compiler.benchmarks.data.datasets import title
    from td_compiler.benchmarks.show.document import Document

    machine = setup.machine
    known = Results(machine.results).read()
    results = [known[job_key(job, machine)] for job in jobs]
    found = replace(EXPERIMENT, section=partial(section, floor=floor)).shown(results)
    versions = {", ".join(f"{name} {version}" for name, version in result.versions.items()) for result in results}
    network, data = jobs[0].training.network.name, title(jobs[0].data)
    page = Document(
        f"{network} on {data}, top-down beside bottom-up",
        found.intro,
        [replace(found, title="Better, and at what?", intro=" ".join(map(summary, found.tables)), commands=())],
        [f"Made with {line}." for line in sorted(versions)],
        (setup.command,),
    )
    stem = f"compare-{slug(f'{network} {data}')}"
    texts = {f"{stem}.html": page.html(), f"{stem}.md": page.markdown("figures")}
    write_together({machine.out / name: partial(_write, text=text) for name, text in texts.items()})
    print(machine.out / f"{stem}.html")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the command; returns the exit status.

    Without --runs there are as many as a verdict needs, without --recipe networks are trained by the fast one.
    """
    given = {word.partition("=")[0] for word in arguments}
    more = [word for option, value in _DEFAULTS.items() if option not in given for word in (option, value)]
    return run_command(_compare, [*arguments, *more], prog)


_DEFAULTS = {"--runs": str(FEWEST_RUNS), "--recipe": FAST}
