"""`python -m benchmarks report`: one page, as HTML and as Markdown, from all results so far."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from td_compiler.benchmarks.data.images import DataError
from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.journal import Result, Results
from td_compiler.benchmarks.lab.options import run_plain_command
from td_compiler.benchmarks.lab.table import as_csv
from td_compiler.benchmarks.show.document import Document
from td_compiler.benchmarks.show.findings import findings
from td_compiler.benchmarks.show.style import save
from td_compiler.benchmarks.show.tables import Section
from td_compiler.files import write_together

__all__ = ["document", "main"]

_INTRO = (
    "Bottom-up networks (BU) and the top-down networks (TD) that td-compiler makes of them, measured as in Lelekas et"
    " al., Top-Down Networks: A coarse-to-fine reimagination of CNNs, 2020. TD is the mirrored network; in TD uniform"
    " all stages have one width, in TD reversed widths grow with depth as in BU."
)


def document(results: Sequence[Result], floor: float | None = None) -> Document:
    """What the report says about these results, experiment by experiment.

    Raises:
        DataError: if the results of an experiment are not as its code now writes them.
    """
    sections = [_section(experiment, results) for experiment in _experiments()]
    shown = [findings(results, floor), *(section for section in sections if section is not None)]
    return Document("Top-down networks: results", _INTRO, [s for s in shown if s.tables or s.figures], _made(results))


def _experiments() -> list[Experiment]:
    """All experiments that leave results, in the order of the command line."""
    from td_compiler.benchmarks.__main__ import EXPERIMENTS, experiment

    modules = (experiment(name) for name in EXPERIMENTS if name != "report")
    return [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]


def _section(experiment: Experiment, results: Sequence[Result]) -> Section | None:
    mine = [result for result in results if result.experiment == experiment.name]
    try:
        return experiment.shown(mine) if mine else None
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"The results of {experiment.name} were written by another version of it ({type(error).__name__}: {error}):"
            " run it again, in a new folder."
        ) from error


def _made(results: Sequence[Result]) -> list[str]:
    """Where, with what and until when the results were made."""
    versions = {", ".join(f"{name} {version}" for name, version in result.versions.items()) for result in results}
    return [f"Made with {line}." for line in sorted(versions)] + [
        f"Last result: {max(r.finished for r in results)} UTC."
    ]


def _read(folders: Sequence[Path]) -> list[Result]:
    """The results of several folders, each once.

    Raises:
        DataError: if a folder has no results.
    """
    found: dict[str, Result] = {}
    for folder in folders:
        path = folder / "results.jsonl"
        if not path.is_file():
            raise DataError(f"There is no {path}: run an experiment with --out {folder} first.")
        found |= Results(path).read()
    if not found:
        raise DataError(f"There is no result in {', '.join(map(str, folders))}: run an experiment first.")
    return list(found.values())


_NONE = list[Path]()


def _report(
    folders: Annotated[list[Path], typer.Argument(help="With results: the experiments' --out; else --out.")] = _NONE,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default the first of the folders.")] = None,
    floor: Annotated[
        float | None, typer.Option(help="Accuracy in % that a BU network must reach where no paper gives one.")
    ] = None,
) -> None:
    """Write report.html (one self-contained page), report.md, its figures and results.csv from all results so far."""
    target = out or (folders[0] if folders else Path("build/benchmarks"))
    results = _read(folders or [target])
    target.mkdir(parents=True, exist_ok=True)
    said = document(results, floor)
    for figure in [figure for section in said.sections for figure in section.figures]:
        save(figure.draw, target / "figures" / f"{figure.name}.svg")
    texts = {"report.html": said.html(), "report.md": said.markdown("figures"), "results.csv": as_csv(results)}
    write_together({target / name: partial(_write, text=text) for name, text in texts.items()})
    print(f"{len(results)} results: {target / 'report.html'}, {target / 'report.md'}")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


main = partial(run_plain_command, _report)
