"""Which networks convert, in which filter arrangement, and what their top-down networks cost.

Every network is made, converted and checked by `td_compiler.verify`. By default this happens on the meta device: no
weights are drawn, so a large network takes no more memory than a small one, and what needs values is not checked. With
--real the networks have values: loss and gradients must be finite, and the emitted source must load strictly and give
equal bits. A run that was interrupted goes on from where it was with --resume.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import td_compiler
from td_compiler.benchmarks.experiments.coverage.models import GROUPS, expand, family
from td_compiler.benchmarks.experiments.coverage.rows import Journal, Row, Task, code_version, convert
from td_compiler.benchmarks.experiments.coverage.tables import markdown, reasons, tally, terminal_table
from td_compiler.benchmarks.experiments.coverage.workers import Lost, run_tasks
from td_compiler.files import write_whole
from td_compiler.options import Filters
from td_compiler.sources.names import SourceError

__all__ = ["main"]


def main(arguments: Sequence[str], prog: str) -> int:
    """Convert networks and report which ones convert, at what cost.

    Args:
        arguments: the command line's options.
        prog: what stands before them, for the help.

    Returns:
        The exit status: 0, 2 if the networks named make no sense, or 130 if interrupted.
    """
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    try:
        if options.summary:
            return _summarise(options.summary, as_json=options.json)
        return _sweep(options)
    except (ValueError, SourceError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `--summary ... | head`
        return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["torchvision-cnns", "timm-families", "pytorchcv-families"],
        metavar="NAME",
        help="zoo:NAME, timm:NAME or another library's, a file, a pattern such as 'timm:resnet*', or a group: "
        f"{', '.join(GROUPS)} (default: torchvision-cnns timm-families pytorchcv-families)",
    )
    parser.add_argument("--family", nargs="+", default=[], metavar="PATTERN", help="of these only, e.g. '*.resnet'")
    arrangements = get_args(Filters)
    parser.add_argument("--filters", nargs="+", choices=arrangements, default=["mirror"], help="default: mirror")
    parser.add_argument("--real", action="store_true", help="with weights, on the CPU")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes at once (default: 1)")
    parser.add_argument("--timeout", type=_positive, default=60, metavar="S", help="seconds a network (default: 60)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/coverage.md"),
        metavar="FILE",
        help="the tables, in Markdown; their rows stand in a .jsonl beside it (default: %(default)s)",
    )
    parser.add_argument("--each", action="store_true", help="also a table with a line for every network")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that an earlier run with the same code made"
    )
    parser.add_argument("--retry", action="store_true", help="keep the rows of what converted, with whatever code")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="only count the reasons in a .jsonl")
    parser.add_argument("--json", action="store_true", help="with --summary: one JSON object a line")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _sweep(options: argparse.Namespace) -> int:
    device = "cpu" if options.real else "meta"
    threads = max(1, (os.cpu_count() or 1) // options.jobs) if options.real else 1
    models = expand(options.models, options.family)
    wanted = [Task(model, filters, device, threads) for filters in dict.fromkeys(options.filters) for model in models]
    output: Path = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(output.with_suffix(".jsonl"), keep=_which_to_keep(options))
    missing = [task for task in wanted if task.key not in journal.rows]
    console = Console(stderr=True)
    interrupted = False
    try:
        _run(missing, len(wanted), journal, options, console)
    except KeyboardInterrupt:
        interrupted = True

    rows = [journal.rows[task.key] for task in wanted if task.key in journal.rows]
    untried = f" {len(wanted) - len(rows)} more were not tried." if len(rows) < len(wanted) else ""
    write_whole(output, markdown(rows, "Coverage", f"{_made(options, device)}{untried}", each=options.each))
    Console().print(terminal_table(rows))
    console.print(f"{tally(rows)}.{untried} Written to {output}.")
    if interrupted:
        console.print("Interrupted; --resume goes on from here.")
        return 130
    return 0


def _which_to_keep(options: argparse.Namespace) -> Callable[[Row], bool]:
    if options.retry:
        return lambda row: row.result == "converted"
    if options.resume:
        return lambda row: row.code == code_version()
    return lambda row: False


def _run(tasks: Sequence[Task], total: int, journal: Journal, options: argparse.Namespace, console: Console) -> None:
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    results = run_tasks(tasks, convert, jobs=options.jobs, timeout=options.timeout)
    with Progress(*columns, console=console) as progress, contextlib.closing(results):
        bar = progress.add_task("", total=total, completed=total - len(tasks))
        for task, result in results:
            if isinstance(result, Lost):
                result = Row(
                    *task.key, family=family(task.model), result="failed", why=(result.why,), code=code_version()
                )
            journal.add(result)
            progress.update(bar, advance=1, description=f"{task.model} {task.filters}: {result.result}")


def _made(options: argparse.Namespace, device: str) -> str:
    libraries = [f"torch {torch.__version__}"]
    for name in ("torchvision", "timm", "pytorchcv"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            libraries.append(f"{name} {metadata.version(name)}")
    versions = f"td-compiler {td_compiler.__version__}, {', '.join(libraries)}, Python {platform.python_version()}"
    where = "on the meta device" if device == "meta" else "with weights"
    command = " ".join(["--models", *options.models, "--filters", *options.filters] + ["--real"] * options.real)
    return f"Converted and checked {where} by `python -m benchmarks coverage {command}`, with {versions}."


def _summarise(path: Path, *, as_json: bool) -> int:
    rows = Journal.read(path)
    found = reasons(rows)
    if as_json:
        for reason in found:
            print(json.dumps({"count": len(reason.models), **asdict(reason)}))
        return 0
    print(f"{tally(rows)}.")
    for reason in found:
        print(f"\n{len(reason.models)} {reason.result}: {reason.text}\n  e.g. {reason.models[0]}: {reason.example}")
        print(f"  {' '.join(reason.models)}")
    return 0
