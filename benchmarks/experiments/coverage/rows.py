"""One network converted and checked: a row of the coverage tables, and the file that keeps the rows."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from td_compiler import ConversionError, TopDownNet, reverse, verify
from td_compiler.benchmarks.experiments.coverage.models import family
from td_compiler.errors import Breakdown
from td_compiler.files import write_whole
from td_compiler.options import Filters, Options
from td_compiler.sources.names import load_source
from td_compiler.verification.checks import Subject, Violation, describe, fingerprint, untouched

__all__ = ["RESULTS", "Journal", "Key", "Row", "Task", "code_version", "convert"]

RESULTS = ("converted", "refused", "violated", "failed", "not made")

Key: TypeAlias = tuple[str, Filters, str]


@dataclass(frozen=True)
class Task:
    """One conversion to do.

    Attributes:
        model: the network's name, e.g. `torchvision:resnet18`.
        filters: mirror, uniform or reversed.
        device: `meta`, or `cpu` for a network with values.
        threads: how many threads torch may use.
    """

    model: str
    filters: Filters
    device: str
    threads: int = 1

    @property
    def key(self) -> Key:
        """What tells one row from another."""
        return self.model, self.filters, self.device


@dataclass(frozen=True)
class Row:
    """One network in one filter arrangement, made on one device.

    Attributes:
        model, filters, device: as in the task.
        family: where the network's class is defined, e.g. `torchvision.resnet`.
        result: converted, with all checks passed; refused (a ConversionError); violated (a check failed); failed (any
            other error, or too slow); not made (the network could not be constructed).
        why: for what is not converted, the reason in one line; a line for every violated check.
        scales: the pyramid's scales, finest first.
        parameters_bu, parameters_td: trainable and frozen parameters.
        macs_bu, macs_td: multiply-accumulate operations for one image at the network's input size.
        checked: checks that were made, those left out not counted.
        seconds: time of the conversion alone.
        code: what `code_version` gave when the row was made.
    """

    model: str
    filters: Filters
    device: str
    family: str
    result: str
    why: tuple[str, ...] = ()
    scales: str = ""
    parameters_bu: int = 0
    parameters_td: int = 0
    macs_bu: int = 0
    macs_td: int = 0
    checked: int = 0
    seconds: float = 0.0
    code: str = ""

    @property
    def key(self) -> Key:
        """What tells one row from another."""
        return self.model, self.filters, self.device


@functools.cache
def code_version() -> str:
    """A hash of the compiler's source and the versions of the libraries: rows of another one are out of date."""
    digest = hashlib.sha256()
    for package in ("td_compiler", "td_compiler.passes"):
        for folder in importlib.import_module(package).__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.read_bytes())
    for library in ("torch", "torchvision", "timm", "pytorchcv"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(metadata.version(library).encode())
    return digest.hexdigest()[:12]


class Journal:
    """The rows finished so far, kept in a file of one JSON object a line, written as soon as each is there.

    Args:
        path: the file.
        keep: which of the rows that are there stay.
    """

    def __init__(self, path: Path, keep: Callable[[Row], bool]) -> None:
        self.path = path
        self.rows = {row.key: row for row in self.read(path) if keep(row)} if path.exists() else {}
        write_whole(path, "".join(map(_json_line, self.rows.values())))

    @staticmethod
    def read(path: Path) -> list[Row]:
        """The rows in a file; a last line that a killed run left unfinished is passed over."""
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows.append(Row(**{**fields, "why": tuple(fields["why"])}))
        return rows

    def add(self, row: Row) -> None:
        """Keep a finished row, in memory and in the file."""
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(_json_line(row))
        self.rows[row.key] = row


def convert(task: Task) -> Row:
    """Make a network, convert it and check the result; whatever goes wrong is the row's result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, on their own models
        return _convert(task)


def _convert(task: Task) -> Row:
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    gc.collect()  # modules refer to each other in cycles: the last network goes before the next one comes
    row = Row(*task.key, family=_family(task.model), result="converted", code=code_version())
    try:
        source = load_source(task.model, {}, device="meta" if task.device == "meta" else None)
    except Exception as error:
        return replace(row, result="not made", why=(_one_line(error),))
    if task.device == "meta":
        source.model.to("meta")  # some networks can only be made with values
    model = source.model
    options: dict[str, Any] = {"filters": task.filters, "input_size": source.input_size}
    before = fingerprint(model)
    start = time.perf_counter()
    try:
        td = reverse(model, **options)
        seconds = round(time.perf_counter() - start, 2)
        untouched(before, fingerprint(model))
        del before
        verification = verify(model, td, **options)
        if task.device != "meta" and verification.passed:
            _one_step(td, Subject(model, td, Options(**options)).small)
    except Breakdown as error:
        return replace(row, result="failed", why=(_one_line(error),))
    except ConversionError as error:
        return replace(row, result="refused", why=(_one_line(error),))
    except Violation as error:
        return replace(row, result="violated", why=(_one_line(error),))
    except Exception as error:
        return replace(row, result="failed", why=(describe(error),))
    bottom_up = [stage.bottom_up for stage in td.report.stages if stage.bottom_up]
    top_down = [stage.top_down for stage in td.report.stages]
    return replace(
        row,
        result="converted" if verification.passed else "violated",
        why=tuple(f"{check.name}: {check.detail}" for check in verification.failures),
        scales=", ".join(map(str, td.scales)),
        parameters_bu=sum(cost.parameters for cost in bottom_up),
        parameters_td=sum(cost.parameters for cost in top_down),
        macs_bu=sum(cost.macs for cost in bottom_up),
        macs_td=sum(cost.macs for cost in top_down),
        checked=1 + sum(not check.skipped for check in verification.checks),
        seconds=seconds,
    )


def _one_step(td: TopDownNet, size: tuple[int, int, int]) -> None:
    """Loss and gradients of two images (C, H, W) in training mode: they must be finite, and not all zero.

    Raises:
        Violation: if they are not.
    """
    images = torch.randn(2, *size)
    td.train()
    scores = td(images)
    loss = nn.functional.cross_entropy(scores, torch.arange(2) % scores.shape[1])
    loss.backward()
    wild = [name for name, p in td.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if not loss.isfinite() or wild:
        raise Violation(f"a training step: loss {loss.item():g}, {len(wild)} gradients are not finite ({wild[:1]})")
    if not any(p.grad is not None and p.grad.any() for p in td.parameters()):
        raise Violation("a training step: all gradients are zero")


def _family(model: str) -> str:
    try:
        return family(model)
    except Exception:
        return model.partition(":")[0]  # there is no such model: making it will say so


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _json_line(row: Row) -> str:
    return json.dumps(asdict(row)) + "\n"
