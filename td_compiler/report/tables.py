"""The table of `tdc inspect`: the bottom-up network (BU) beside the top-down network (TD), scale by scale."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from td_compiler.layers.pyramid import factor_pair
from td_compiler.report.report import Cost, ReceptiveField, Report

if TYPE_CHECKING:
    from td_compiler.report.savings import Saving
    from td_compiler.verification.verify import Verification

__all__ = [
    "as_data",
    "byte_count",
    "print_report",
    "print_savings",
    "print_verification",
    "report_text",
    "short_count",
    "total",
]


def short_count(number: float) -> str:
    """A count in at most six characters: 528042 is `528.0k`, 69500000 is `69.5M`."""
    number, power = _scaled(number, 1000)
    return f"{number:.1f}{' kMGTP'[power]}" if power else f"{number:.0f}"


def byte_count(number: float) -> str:
    """A memory size in at most eight characters: 1288490189 is `1.2 GiB`, 300000 is `293 KiB`."""
    number, power = _scaled(number, 1024)
    decimals = 1 if power and number < 99.95 else 0
    return f"{number:.{decimals}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"


def _scaled(number: float, base: int) -> tuple[float, int]:
    """A number below 999.95 (from there on, one decimal makes it 1000.0) and its power of the base."""
    power = 0
    while number >= 999.95 and power < 5:
        number, power = number / base, power + 1
    return number, power


def _map_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _side_or_size(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else _map_size(size)


def _field(field: ReceptiveField | None) -> str:
    """`43` where all entries see the same, `9-832` from the entry that sees least to all together."""
    if field is None:
        return "-"
    return "-".join(dict.fromkeys(map(_side_or_size, field)))


Style = dict[str, tuple[str, Callable[[Any], str]]]

# A field of Cost -> its heading and how a value is printed.
_FULL: Style = {
    "size": ("map", _map_size),
    "width": ("width", str),
    "units": ("units", str),
    "parameters": ("parameters", "{:,}".format),
    "macs": ("MACs", short_count),
    "activation_bytes": ("activations", byte_count),
}
_SHORT: Style = {
    "size": ("map", _side_or_size),
    "width": ("width", str),
    "units": ("units", str),
    "parameters": ("params", short_count),
    "macs": ("MACs", short_count),
    "activation_bytes": ("memory", byte_count),
}
_SUMMED = ("parameters", "macs", "activation_bytes")


_FIELD: Style = {"receptive_field": ("field", _field)}


def print_report(report: Report, console: Console) -> None:
    """Print a report as a table: as much as the console is wide enough for.

    That is whole numbers and receptive fields (`field`, where the report has them) at best, else whole numbers, short
    numbers and receptive fields, short numbers alone.
    """
    styles = [(_FULL | _FIELD, 2), (_FULL, 2), (_SHORT | _FIELD, 1), (_SHORT, 1)]
    if not any(row.top_down.receptive_field for row in report.stages):
        styles = [(_FULL, 2), (_SHORT, 1)]
    tables = [_table(report, style, gap) for style, gap in styles]
    table = next((t for t in tables if _natural_width(t, console) <= console.width), tables[-1])
    channels, height, width = report.input_size
    console.print(f"{report.source}, one image of {channels}x{height}x{width}", highlight=False, markup=False)
    narrow = console.width
    console.width = max(narrow, _natural_width(table, console))  # a terminal that wraps beats columns cut off
    console.print(table, highlight=False)
    console.width = narrow
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def report_text(report: Report) -> str:
    """A report as :func:`print_report` prints it on a terminal of this width, 80 columns where there is none."""
    width = shutil.get_terminal_size().columns
    console = Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        print_report(report, console)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def print_savings(savings: Sequence[Saving], report: Report, console: Console) -> None:
    """Print where most of the cost is, and which option would lower it by how much."""
    for field, name in (("macs", "products"), ("activation_bytes", "memory")):
        costs = {row.name: getattr(row.top_down, field) for row in report.stages}
        where = max(costs, key=lambda name: costs[name])
        console.print(f"{where} has {costs[where] / sum(costs.values()):.0%} of the {name}", highlight=False)
    for saving in savings:
        console.print(
            f"--{saving.option} {saving.value} would leave {saving.macs:.0%} of the products,"
            f" {saving.activation_bytes:.0%} of the memory",
            highlight=False,
        )


def print_verification(verification: Verification, console: Console) -> None:
    """Print checks as a table: a tick, a cross or, for what was not looked at, a dash; the check; what was seen."""
    from td_compiler.verification.verify import marks  # imports the compiler, which other tables have no use for

    signs = marks(console.encoding)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=2)
    table.add_column(ratio=3)
    for check in verification.checks:
        style = "dim" if check.skipped else "green" if check.passed else "red"
        detail = f"not looked at: {check.detail}" if check.skipped else check.detail
        table.add_row(Text(signs[check.outcome], style), Text(check.name), Text(detail, "" if check.passed else style))
    console.print(verification.heading, highlight=False, markup=False)
    console.print(table, highlight=False)


def _natural_width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=1000), table).maximum


def _table(report: Report, style: Style, gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("scale", justify="right", no_wrap=True)
    for heading, _ in style.values():
        table.add_column(f"{heading}\nBU", justify="right", no_wrap=True)
        table.add_column("\nTD", justify="right", no_wrap=True, style="bold")
    for row in report.stages:
        scale = "head" if row is report.stages[-1] else str(row.scale)
        cells = (
            (_cell(row.bottom_up, field, show), _cell(row.top_down, field, show)) for field, (_, show) in style.items()
        )
        table.add_row(scale, *chain.from_iterable(cells))
    table.add_section()
    totals = {field: total(report, field) for field in _SUMMED}
    sums = (map(show, totals[field]) if field in totals else ("", "") for field, (_, show) in style.items())
    table.add_row("total", *chain.from_iterable(sums))
    ratios = (("", _ratio(*totals[field]) if field in totals else "") for field in style)
    table.add_row("TD/BU", *chain.from_iterable(ratios))
    return table


def _cell(cost: Cost | None, field: str, show: Callable[[Any], str]) -> str:
    return "-" if cost is None else show(getattr(cost, field))


def as_data(report: Report) -> dict[str, Any]:
    """A report as data for `json.dumps`; what `tdc inspect --json` prints.

    Keys: `source`, `input_size` [C, H, W], `scales` (finest first), `stages` (finest first, then the head), `total` and
    `notes`. A stage has `name`, `scale`, and the costs `bottom_up` (null where that network computes nothing at the
    scale) and `top_down`: `size` of the map, `width`, `units`, `parameters`, `macs`, `activation_bytes` and
    `receptive_field`, null or `smallest` and `largest` in image pixels. Scales, sizes and fields are [height, width].
    `total` has `parameters`, `macs` and `activation_bytes` of both networks, `bottom_up` and `top_down`.
    """
    totals = {field: total(report, field) for field in _SUMMED}
    return {
        "source": report.source,
        "input_size": report.input_size,
        "scales": [factor_pair(scale) for scale in report.scales],
        "stages": [
            {
                "name": row.name,
                "scale": factor_pair(row.scale),
                "bottom_up": row.bottom_up and _cost_as_data(row.bottom_up),
                "top_down": _cost_as_data(row.top_down),
            }
            for row in report.stages
        ],
        "total": {
            name: {field: sums[i] for field, sums in totals.items()} for i, name in enumerate(("bottom_up", "top_down"))
        },
        "notes": report.notes,
    }


def _cost_as_data(cost: Cost) -> dict[str, Any]:
    data = {name: getattr(cost, name) for name in _FULL}
    return data | {"receptive_field": cost.receptive_field and cost.receptive_field._asdict()}


def total(report: Report, field: str) -> tuple[int, int]:
    """A field of the costs summed over all rows: (BU, TD)."""
    bottom_up = sum(getattr(row.bottom_up, field) for row in report.stages if row.bottom_up is not None)
    return bottom_up, sum(getattr(row.top_down, field) for row in report.stages)


def _ratio(bottom_up: int, top_down: int) -> str:
    return f"{top_down / bottom_up:.2f}" if bottom_up else "-"
