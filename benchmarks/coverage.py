"""Which networks convert, in which filter arrangement, and what their top-down networks cost.

Networks are made and converted on the meta device: no weights are drawn, so a large network takes no more memory than a
small one. A conversion counts as done when the top-down network also runs there and has the source's output shape.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias, get_args

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from torch import nn

import td_compiler
from td_compiler import ConversionError, reverse
from td_compiler.options import Filters
from td_compiler.sources import LIBRARIES, LoadedSource, load_source, model_names
from td_compiler.zoo import ZOO

__all__ = ["DEFAULT_MODELS", "Journal", "Row", "main"]

DEFAULT_MODELS = (
    *(f"zoo:{name}" for name in ZOO),
    *(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "torchvision:resnext50_32x4d",
    "torchvision:wide_resnet50_2",
    *(f"torchvision:vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "torchvision:mobilenet_v2",
)


Key: TypeAlias = tuple[str, Filters]


@dataclass(frozen=True)
class Row:
    """One network in one filter arrangement.

    Attributes:
        model: the network's name, e.g. `torchvision:resnet18`.
        filters: mirror, uniform or reversed.
        result: converted; refused (a ConversionError); not made (the network could not be constructed); failed
            (anything else: a defect of the compiler).
        why: for what is not converted, the error in one line.
        scales: the pyramid's scales, finest first.
        parameters_bu, parameters_td: trainable and frozen parameters.
        macs_bu, macs_td: multiply-accumulate operations for one image at the network's input size.
        seconds: time of the conversion, without the making of the network.
    """

    model: str
    filters: Filters
    result: str
    why: str = ""
    scales: str = ""
    parameters_bu: int = 0
    parameters_td: int = 0
    macs_bu: int = 0
    macs_td: int = 0
    seconds: float = 0.0


def main(arguments: Sequence[str], prog: str) -> int:
    """Convert networks on the meta device and report which ones convert, at what cost.

    Args:
        arguments: the command line's options.
        prog: what stands before them, for the help.

    Returns:
        The exit status: 0, or 130 if interrupted.
    """
    options = _parser(prog).parse_args(arguments)
    output: Path = options.output
    wanted = [(model, filters) for model in _expand(options.models) for filters in dict.fromkeys(options.filters)]
    output.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(output.with_suffix(".jsonl"), resume=options.resume)

    console = Console(stderr=True)
    interrupted = False
    try:
        _run_missing(wanted, journal, console)
    except KeyboardInterrupt:
        interrupted = True

    rows = [journal.rows[key] for key in wanted if key in journal.rows]
    tally = f"{sum(row.result == 'converted' for row in rows)} of {len(rows)} conversions succeeded."
    if len(rows) < len(wanted):
        tally += f" {len(wanted) - len(rows)} more were not tried."
    _write_atomically(output, _markdown(rows, tally))
    Console().print(_summary(rows))
    console.print(f"{tally} Written to {output}.")
    if interrupted:
        console.print("Interrupted; --resume goes on from here.")
        return 130
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--models",
        nargs="+",
        default=DEFAULT_MODELS,
        metavar="NAME",
        help="zoo:NAME, torchvision:NAME, timm:NAME, a file, or all-zoo, all-torchvision, all-timm "
        "(default: the zoo, and torchvision's ResNets, VGGs and MobileNetV2)",
    )
    arrangements = get_args(Filters)
    parser.add_argument("--filters", nargs="+", choices=arrangements, default=arrangements, help="default: all three")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/results/coverage.md"),
        metavar="FILE",
        help="the table, in Markdown; its rows stand in a .jsonl beside it (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows that an earlier run finished")
    return parser


class Journal:
    """The rows finished so far, kept in a file of one JSON object a line, written as soon as each is there."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.rows: dict[Key, Row] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if resume and path.exists() else []
        for line in lines:
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a killed run was writing
            row = Row(**fields)
            self.rows[row.model, row.filters] = row
        _write_atomically(path, "".join(map(_json_line, self.rows.values())))

    def add(self, row: Row) -> None:
        """Keep a finished row, in memory and in the file."""
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(_json_line(row))
        self.rows[row.model, row.filters] = row


def _expand(models: Iterable[str]) -> list[str]:
    names: list[str] = []
    for model in models:
        library = model.removeprefix("all-")
        if model != library and library in LIBRARIES:
            names += [f"{library}:{name}" for name in model_names(library)]
        else:
            names.append(model)
    return list(dict.fromkeys(names))


def _run_missing(wanted: Sequence[Key], journal: Journal, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(wanted))
        for model, keys in itertools.groupby(wanted, key=lambda key: key[0]):
            planned = list(keys)
            missing = [filters for _, filters in planned if (model, filters) not in journal.rows]
            progress.update(task, advance=len(planned) - len(missing))
            source = _load(model) if missing else None
            for filters in missing:
                progress.update(task, description=f"{model} {filters}")
                journal.add(_convert(source, model, filters))
                progress.advance(task)


def _load(model: str) -> LoadedSource | str:
    """The network on the meta device, or why there is none."""
    try:
        return load_source(model, {}, device="meta")
    except Exception as error:
        return _one_line(error)


def _convert(source: LoadedSource | str | None, model: str, filters: Filters) -> Row:
    if not isinstance(source, LoadedSource):
        return Row(model, filters, "not made", why=source or "")
    start = time.perf_counter()
    try:
        td = reverse(source.model, filters=filters, input_size=source.input_size)
        seconds = time.perf_counter() - start
        _check_output(source.model, td, td.report.input_size)
    except ConversionError as error:
        return Row(model, filters, "refused", why=_one_line(error))
    except Exception as error:
        return Row(model, filters, "failed", why=f"{type(error).__name__}: {_one_line(error)}")
    bottom_up = [stage.bottom_up for stage in td.report.stages if stage.bottom_up]
    top_down = [stage.top_down for stage in td.report.stages]
    return Row(
        model,
        filters,
        "converted",
        scales=", ".join(map(str, td.scales)),
        parameters_bu=sum(cost.parameters for cost in bottom_up),
        parameters_td=sum(cost.parameters for cost in top_down),
        macs_bu=sum(cost.macs for cost in bottom_up),
        macs_td=sum(cost.macs for cost in top_down),
        seconds=round(seconds, 2),
    )


def _check_output(model: nn.Module, td: nn.Module, input_size: tuple[int, int, int]) -> None:
    images = torch.empty(2, *input_size, device="meta")
    was_training = model.training
    with torch.no_grad():
        expected, found = model.eval()(images).shape, td.eval()(images).shape
    model.train(was_training)
    if found != expected:
        raise RuntimeError(f"the top-down network puts out {tuple(found)}, its source {tuple(expected)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _json_line(row: Row) -> str:
    return json.dumps(asdict(row)) + "\n"


def _summary(rows: Sequence[Row]) -> Table:
    """The rows for a terminal: ratios only."""
    table = Table(
        Column("model", no_wrap=True),
        "filters",
        "result",
        "parameters",
        "MACs",
        "s",
        caption="parameters, MACs: TD / BU",
    )
    for row in rows:
        if row.result == "converted":
            parameters, macs = row.parameters_td / row.parameters_bu, row.macs_td / row.macs_bu
            table.add_row(row.model, row.filters, row.result, f"{parameters:.2f}", f"{macs:.2f}", f"{row.seconds:.1f}")
        else:
            table.add_row(row.model, row.filters, escape(f"{row.result}: {row.why}"))
    return table


HEADINGS = ["model", "filters", "result", "scales", "parameters BU", "parameters TD"]
HEADINGS += ["MACs TD / BU", "seconds", "why not"]


def _cells(row: Row) -> list[str]:
    if row.result != "converted":
        return [row.model, row.filters, row.result, "", "", "", "", "", row.why.replace("|", "\\|")]
    parameters, ratio = (f"{row.parameters_bu:,}", f"{row.parameters_td:,}"), f"{row.macs_td / row.macs_bu:.2f}"
    return [row.model, row.filters, row.result, row.scales, *parameters, ratio, f"{row.seconds:.2f}", ""]


def _markdown(rows: Sequence[Row], tally: str) -> str:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, rows)]
    versions = f"td-compiler {td_compiler.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"# Coverage\n\n{tally} Made with {versions}.\n\n{table}\n"


def _write_atomically(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
