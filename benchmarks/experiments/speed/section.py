"""What the speed experiment shows: a table of inference and one of training steps."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.show.tables import Cell, Section, Table
from td_compiler.report.tables import byte_count, short_count

__all__ = ["speed_section"]

_PASSES = {"inference": 1, "training": 3}  # a backward pass takes two products for each of the forward pass
_TITLES = {"inference": "Inference", "training": "Training step"}


def speed_section(results: Sequence[Result]) -> Section:
    """The tables of results of this experiment."""
    devices = "; ".join(sorted({str(result.job["device"]) for result in results}))
    return Section(
        title="Speed",
        intro="Emitted networks against the same networks written by hand or, where there is none, as the compiler"
        " writes them with `fast=False`. Both read the levels of one pyramid; their steps take turns in one process."
        f" On {devices}.",
        tables=[_table(kind, results) for kind in _PASSES],
    )


_COLUMNS = (
    *("network", "images", "plain network", "plain (ms)", "emitted (ms)", "plain / emitted", "from - to"),
    *("MACs, plain", "emitted", "of the product rate"),
)
_MEMORY = ("kept, plain", "kept, emitted", "peak, plain", "peak, emitted")


def _table(kind: str, results: Sequence[Result]) -> Table:
    repeats = ", ".join(sorted({str(result.job["repeats"]) for result in results}))
    note = (
        f"Medians of {repeats} steps each; ratios are of neighbouring steps, the middle half of them from - to."
        " The last column of the products: what the emitted network computes a second, over what the machine does in a"
        " product of matrices, measured in the same run."
    )
    if kind == "training":
        note += " Kept: bytes kept for the backward pass; peak: resident memory above that of the network and images."
    columns = _COLUMNS + (_MEMORY if kind == "training" else ())
    return Table(_TITLES[kind], columns, tuple(_row(kind, result) for result in results), note)


def _row(kind: str, result: Result) -> tuple[Cell, ...]:
    job, figures = result.job, result.figures
    plain, emitted = figures["plain"], figures["emitted"]
    ratios = sorted(one / other for one, other in zip(plain[kind], emitted[kind], strict=True))
    rate = 2 * _PASSES[kind] * emitted["macs"] / median(emitted[kind]) / figures["rate"]
    ways = [way for way, on in (("bf16", job["bf16"]), ("compiled", job["compiled"])) if on]
    cells: tuple[Cell, ...] = (
        job["network"],
        f"{job['batch']} x {job['side']} x {job['side']}",
        ", ".join([job["plain_layout"].replace("_", " "), *ways]),
        f"{1e3 * median(plain[kind]):.1f}",
        f"{1e3 * median(emitted[kind]):.1f}",
        f"{median(ratios):.2f}",
        f"{ratios[len(ratios) // 4]:.2f} - {ratios[-1 - len(ratios) // 4]:.2f}",
        short_count(plain["macs"]),
        short_count(emitted["macs"]),
        f"{100 * rate:.0f} %",
    )
    if kind == "inference":
        return cells
    pairs = [(plain[what], emitted[what]) for what in ("saved", "peak")]
    return cells + tuple(byte_count(count) if count is not None else None for pair in pairs for count in pair)
