"""`python -m benchmarks emission`: how emitted source reads, in numbers, beside the source's own classes."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from td_compiler.benchmarks.lab.options import run_plain_command
from td_compiler.benchmarks.show.tables import Section, Table, show
from td_compiler.files import write_whole

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Reading", "main", "read_network", "read_text"]

NETWORKS = ["torchvision-families", "timm-families", "torchvision:densenet201"]


@dataclass(frozen=True)
class Reading:
    """What a reader of a network's emitted source meets.

    Attributes:
        network: a source as the command line names it.
        lines: of the emitted file.
        source_lines: of the classes of the source network's modules that are none of torch's.
        common: lines of what every top-down network needs: header, imports, the project's own definitions, the
            pyramid, the way through the stages, and what timm's contract asks for.
        numbered: classes that only a number tells from another (`Merge2`).
        indexed: places outside of `__init__` where a container is indexed by a string.
        longest: the columns of the longest line of an `__init__`.
        seconds: that the text took, of one processor.
        refused: why there is none.
    """

    network: str
    lines: int = 0
    source_lines: int = 0
    common: int = 0
    numbered: int = 0
    indexed: int = 0
    longest: int = 0
    seconds: float = 0.0
    refused: str = ""

    @property
    def ratio(self) -> float:
        """Lines of emitted text for a line of the source's."""
        return self.lines / self.source_lines if self.source_lines else float("nan")


def read_network(network: str) -> Reading:
    """Convert a network and read its text, as `tdc convert` writes it."""
    from td_compiler import ConversionError, reverse
    from td_compiler.emission import emit_source
    from td_compiler.sources.names import load_source

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = load_source(network, {})
        try:
            top_down = reverse(source.model, fast=False, input_size=source.input_size)
            start = time.process_time()
            text = emit_source(top_down, class_name="Network", origin=network, command=f"tdc convert {network}")
            seconds = time.process_time() - start
        except ConversionError as error:
            return Reading(network, refused=str(error))
    return read_text(network, text, source.model, seconds)


def read_text(network: str, text: str, model: nn.Module, seconds: float = 0.0) -> Reading:
    """Count what is in a text, and in the classes that a model's modules are of."""
    kinds = dict.fromkeys([type(model), *(type(module) for module in model.modules())])
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] != "torch"]
    tree = ast.parse(text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = {node.name for node in classes} - {kind.__name__ for kind in own}
    methods = [node for kind in classes for node in kind.body if isinstance(node, ast.FunctionDef)]
    lines = text.splitlines()
    inits = [node for node in methods if node.name == "__init__"]
    return Reading(
        network,
        lines=len(lines),
        common=_common_lines(tree, len(lines)),
        source_lines=sum(len(inspect.getsource(kind).splitlines()) for kind in own),
        numbered=sum(re.sub(r"\d+$", "", name) in {node.name for node in classes} - {name} for name in names),
        indexed=sum(1 for node in methods if node.name != "__init__" for _ in _string_indices(node)),
        longest=max(len(line) for node in inits for line in lines[node.lineno - 1 : node.end_lineno]),
        seconds=seconds,
    )


_COMMON = {
    *("get_classifier", "reset_classifier", "pyramid", "stage_maps"),
    *("forward_features", "forward_pyramid", "forward"),
}
_OWN = {"Numbered", "Stage", "Growing", "EvenConv2d", "DropPath"}


def _common_lines(tree: ast.Module, lines: int) -> int:
    """How many lines of a file are what every top-down network needs, blank lines around it included."""
    own = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name not in _OWN]
    inside = (
        [node for node in own[-1].body if isinstance(node, ast.FunctionDef) and node.name in _COMMON] if own else []
    )
    rules = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "init_weights"]
    size = sum((node.end_lineno or 0) - node.lineno + 3 for node in [*own, *rules])
    return lines - size + sum((node.end_lineno or 0) - node.lineno + 2 for node in inside)


def _string_indices(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Where a function indexes something by a string: a literal, `str(i)`, or what runs through literals."""
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple)]
    words = {
        loop.target.id
        for loop in loops
        if isinstance(loop.target, ast.Name) and isinstance(loop.iter, ast.Tuple) and any(map(_is_text, loop.iter.elts))
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript):
            index = node.slice
            called = isinstance(index, ast.Call) and isinstance(index.func, ast.Name) and index.func.id == "str"
            if _is_text(index) or called or (isinstance(index, ast.Name) and index.id in words):
                yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            yield node


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _section(readings: Sequence[Reading], command: str) -> Section:
    found = [reading for reading in readings if not reading.refused]
    refused = [reading.network for reading in readings if reading.refused]
    clean = sum(not reading.numbered and not reading.indexed for reading in found)
    ratios = [reading.ratio for reading in found]
    note = ""
    if found:
        above, far = (sum(ratio > limit for ratio in ratios) for limit in (1.3, 2))
        note = (
            f"Of {len(found)} networks: ratio {statistics.median(ratios):.2f} in the median, {max(ratios):.2f} at most,"
            f" above 1.3 in {above} and above 2 in {far}; {clean} have neither numbered class nor string index."
            f" What every top-down network needs takes {min(r.common for r in found)} to {max(r.common for r in found)}"
            f" lines, without which {sum(r.lines - r.common > 2 * r.source_lines for r in found)} are above 2."
        )
    return Section(
        title="Emission",
        intro="The lines of the text that tdc convert writes, header, imports and pyramid included, beside those of"
        " the classes that the source network's modules are of, torch's own left out; `common` are those that every"
        " top-down network needs: header, imports, pyramid, the way through the stages, timm's contract. A numbered"
        " class is one that only a number tells from another; a string index is one in any method but the constructor.",
        tables=[
            Table(
                title="Emitted source",
                columns=(
                    "network",
                    "lines",
                    "common",
                    "source",
                    "ratio",
                    "numbered",
                    "string indices",
                    "longest",
                    "ms",
                ),
                rows=tuple(
                    (
                        *(r.network, r.lines, r.common, r.source_lines, f"{r.ratio:.2f}"),
                        *(r.numbered, r.indexed, r.longest, f"{1e3 * r.seconds:.0f}"),
                    )
                    for r in found
                ),
                note=note + (f" Not converted: {', '.join(refused)}." if refused else ""),
            )
        ],
        figures=[],
        commands=[command],
    )


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the command line; returns the exit status."""
    command = " ".join([prog, *arguments])

    def emission(
        networks: Annotated[
            list[str], typer.Argument(help="zoo:NAME, torchvision:NAME, FILE.py, or a group of coverage.")
        ] = NETWORKS,
        output: Annotated[Path, typer.Option(metavar="FILE", help="The table, in Markdown.")] = Path(
            "build/emission.md"
        ),
    ) -> None:
        """Read the emitted source of networks: its length, and what makes it hard to read."""
        from rich.console import Console

        from td_compiler.benchmarks.experiments.coverage.models import expand
        from td_compiler.benchmarks.show.document import Document

        readings = []
        for network in expand(networks):
            readings.append(read_network(network))
            print(f"{network}: {readings[-1].refused or f'{readings[-1].ratio:.2f}'}", file=sys.stderr)
        section = _section(readings, command)
        for table in section.tables:
            show(table, Console())
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, Document("How emitted source reads", "", [section], []).markdown("figures"))

    return run_plain_command(emission, arguments, prog)
