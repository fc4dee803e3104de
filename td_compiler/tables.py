"""The table of `tdc inspect`: the bottom-up network (BU) beside the top-down network (TD), scale by scale."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from td_compiler.report import Cost, Report

__all__ = ["byte_count", "print_report", "short_count", "total"]


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


def print_report(report: Report, console: Console) -> None:
    """Print a report as a table: whole numbers where the console is wide enough for them, else short ones."""
    table = _table(report, _FULL, gap=2)
    if _natural_width(table, console) > console.width:
        table = _table(report, _SHORT, gap=1)
    channels, height, width = report.input_size
    console.print(f"{report.source}, one image of {channels}x{height}x{width}", highlight=False, markup=False)
    narrow = console.width
    console.width = max(narrow, _natural_width(table, console))  # a terminal that wraps beats columns cut off
    console.print(table, highlight=False)
    console.width = narrow
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


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


def total(report: Report, field: str) -> tuple[int, int]:
    """A field of the costs summed over all rows: (BU, TD)."""
    bottom_up = sum(getattr(row.bottom_up, field) for row in report.stages if row.bottom_up is not None)
    return bottom_up, sum(getattr(row.top_down, field) for row in report.stages)


def _ratio(bottom_up: int, top_down: int) -> str:
    return f"{top_down / bottom_up:.2f}" if bottom_up else "-"
