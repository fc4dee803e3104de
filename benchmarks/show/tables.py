"""What an experiment shows: tables and figures, for the terminal, for Markdown and for a web page."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table
    from matplotlib.figure import Figure as Plot
    from rich.console import Console

__all__ = ["Cell", "Figure", "Section", "Table", "escaped", "mean_and_deviation", "ratio", "show"]

Cell = str | float | None

_NARROW = 3  # columns that fit a page of 400 pixels
_LONG = 24  # characters that are better broken into two lines than into ten
_NUMBER = re.compile(r"[-+\u2212]?\d[\d.,]*(e[-+]?\d+)?( ?(%|x|[kMG]?i?B|[kMG]|m?s))?( ?(±|to|\[|\()[^;]{1,25})?$")


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings.

    Attributes:
        title: what the table shows.
        columns: the headings.
        rows: a text, a number (shown with four digits) or None (a dash) per column.
        note: a sentence or two below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        table = RichTable(
            title=self.title, caption=self.note or None, title_justify="left", caption_justify="left", box=SIMPLE_HEAD
        )
        for column in self.columns:
            table.add_column(column, no_wrap=True)
        for row in self.rows:
            table.add_row(*map(_text, row))
        return table

    def markdown(self) -> str:
        """A title line, the grid, the note."""
        lines = [self.columns, ("---",) * len(self.columns), *(tuple(map(_text, row)) for row in self.rows)]
        grid = "\n".join(
            f"| {' | '.join(escaped(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
        )
        return "\n\n".join(part for part in (f"**{escaped(self.title)}**", grid, escaped(self.note)) if part)

    def html(self) -> str:
        """A `<table>` with the title as its caption.

        Columns of numbers are of class `number`. Each cell names its column, so that a narrow page can show a wide
        table, of class `cards`, row by row.
        """
        kinds = [_kind([row[place] for row in self.rows]) for place in range(len(self.columns))]
        heads = "".join(
            f"<th scope='col'{kind}>{html.escape(column)}</th>"
            for column, kind in zip(self.columns, kinds, strict=True)
        )
        body = "".join(f"<tr>{''.join(map(_html_cell, self.columns, row, kinds))}</tr>" for row in self.rows)
        note = f"<p class='note'>{html.escape(self.note)}</p>" if self.note else ""
        caption = f"<caption>{html.escape(self.title)}</caption>"
        wide = " class='cards'" if len(self.columns) > _NARROW else ""
        return f"<table{wide}>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{note}"


@dataclass(frozen=True)
class Figure:
    """A plot, drawn when it is needed.

    Attributes:
        title: what it shows.
        name: the stem of its file's name.
        draw: makes it.
        caption: a sentence or two below it.
    """

    title: str
    name: str
    draw: Callable[[], Plot]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """What one experiment found.

    Attributes:
        title, intro: the heading and a paragraph below it.
        tables, figures: in the order in which they are shown.
        commands: the commands that made it.
    """

    title: str
    intro: str = ""
    tables: Sequence[Table] = field(default=())
    figures: Sequence[Figure] = field(default=())
    commands: Sequence[str] = field(default=())


def show(table: Table, console: Console) -> None:
    """Print a table in full: where the console is too narrow for it, its lines are longer than the console."""
    from rich.measure import Measurement

    shown, width = table.rich(), console.width
    console.width = max(width, Measurement.get(console, console.options.update(width=1000), shown).maximum)
    console.print(shown, highlight=False)
    console.width = width


def mean_and_deviation(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """`91.20 ± 0.13`: mean and sample standard deviation; the mean alone for one value, a dash for none.

    Args:
        values: one for each run.
        digits: after the point.
        scale: what the values are multiplied by, e.g. 100 for per cent.
    """
    scaled = [scale * value for value in values]
    if len(scaled) < 2:
        return f"{scaled[0]:.{digits}f}" if scaled else _text(None)
    return f"{statistics.mean(scaled):.{digits}f} ± {statistics.stdev(scaled):.{digits}f}"


def ratio(values: Sequence[float], reference: Sequence[float]) -> str:
    """`1.88`: the mean of the values over the reference's; a dash where there is no reference, or it is 0."""
    if not values or not reference or not statistics.mean(reference):
        return _text(None)
    return f"{statistics.mean(values) / statistics.mean(reference):.2f}"


def escaped(text: str) -> str:
    """Text for Markdown, in one line, in which nothing is markup."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*$])", r"\\\1", plain).replace("](", "]\\(")


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"


def _html_cell(column: str, cell: Cell, kind: str) -> str:
    return f"<td{kind} data-column='{html.escape(column)}'>{html.escape(_text(cell))}</td>"


def _kind(cells: Sequence[Cell]) -> str:
    """The class of a column: `number` where all cells are numbers, as text too, or dashes; `text` of long words."""
    texts = [text for text in map(_text, cells) if text != "-"]
    if texts and all(map(_NUMBER.match, texts)):
        return " class='number'"
    return " class='text'" if max(map(len, texts), default=0) > _LONG else ""
