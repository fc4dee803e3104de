"""The coverage rows as tables: by family for a reader, by reason for who mends what fails."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Column, Table

from td_compiler.benchmarks.experiments.coverage.rows import RESULTS, Row

__all__ = ["Reason", "by_family", "markdown", "reasons", "tally", "terminal_table"]


@dataclass(frozen=True)
class Reason:
    """Why some networks do not convert, with names and numbers taken out of the text.

    Attributes:
        result: refused, violated, failed or not made.
        text: the reason, `_` for what was quoted, N for numbers, <path> for a layer's path.
        example: the reason in full, for the first network.
        models: the networks, as `NAME` or `NAME (filters)` where those are not mirror.
    """

    result: str
    text: str
    example: str
    models: tuple[str, ...]


def reasons(rows: Iterable[Row]) -> list[Reason]:
    """The reasons for what does not convert, the most frequent ones first; a network may have several."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        for why in row.why:
            groups[row.result, _general(why)].append((_name(row), why))
    found = [
        Reason(result, text, group[0][1], tuple(name for name, _ in group)) for (result, text), group in groups.items()
    ]
    return sorted(found, key=lambda reason: -len(reason.models))


def _general(why: str) -> str:
    quoted = re.sub(r"(?<!\w)'[^']*'|\"[^\"]*\"", "'_'", why)
    paths = re.sub(r"\b\w*[a-z]\w*(\.\w+)+", "<path>", quoted)
    numbers = re.sub(r"\d+(\.\d+)?", "N", paths)
    listed = re.sub(r"N(, N)+", "N, ...", numbers)
    return re.sub(r"([^,:]+)(,\1)+", r"\1", listed)


def _name(row: Row) -> str:
    return row.model if row.filters == "mirror" else f"{row.model} ({row.filters})"


def tally(rows: Sequence[Row]) -> str:
    """`635 of 702 converted, 67 refused`."""
    counts = Counter(row.result for row in rows)
    others = [f"{counts[result]} {result}" for result in RESULTS[1:] if counts[result]]
    return ", ".join([f"{counts['converted']} of {len(rows)} converted", *others])


def by_family(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of every family, families in alphabetical order, timm's last."""
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.family].append(row)
    return dict(sorted(families.items(), key=lambda item: (item[0].startswith("timm."), item[0])))


def terminal_table(rows: Sequence[Row]) -> Table:
    """Families and how many of their networks convert, with a column for every result that occurs."""
    present = [result for result in RESULTS if any(row.result == result for row in rows)]
    table = Table(Column("family", no_wrap=True), "networks", *present, "MACs TD / BU", "s")
    for name, group in by_family(rows).items():
        counts = Counter(row.result for row in group)
        table.add_row(name, str(len(group)), *(str(counts[result] or "") for result in present), *_medians(group)[1:])
    return table


def _counts(rows: Sequence[Row]) -> list[str]:
    counts = Counter(row.result for row in rows)
    return [str(len(rows)), str(counts["converted"]), *(str(counts[result] or "") for result in RESULTS[1:])]


def _medians(rows: Sequence[Row]) -> list[str]:
    """Medians of the parameters' ratio, the MACs' ratio and the seconds over what converts."""
    done = [row for row in rows if row.result == "converted"]
    if not done:
        return ["", "", ""]
    parameters = statistics.median(row.parameters_td / row.parameters_bu for row in done)
    macs = statistics.median(row.macs_td / row.macs_bu for row in done)
    return [f"{parameters:.2f}", f"{macs:.1f}", f"{statistics.median(row.seconds for row in done):.1f}"]


def markdown(rows: Sequence[Row], title: str, made: str, *, each: bool) -> str:
    """A page: the counts, a table by family, the reasons for what does not convert.

    Args:
        rows: what to show.
        title: the page's title.
        made: how, in a sentence or two.
        each: also a table with a line for every network.
    """
    parts = [f"# {title}", f"{tally(rows)}. {made}"]
    heading = ["family", "networks", "converted", *RESULTS[1:], "parameters TD / BU", "MACs TD / BU", "seconds"]
    families = by_family(rows)
    total = ["all", *_counts(rows), *_medians(rows)]
    parts.append(_grid([heading, *([name, *_counts(of), *_medians(of)] for name, of in families.items()), total]))
    parts.append(
        "Ratios and seconds (of the conversion alone, one thread) are medians over the networks that convert;"
        " parameters and MACs are those of the whole networks at the input size that each declares."
    )
    found = reasons(rows)
    if found:
        lines = [[str(len(r.models)), r.result, r.example, ", ".join(r.models)] for r in found]
        parts += ["## What does not convert, and why", _grid([["networks", "result", "why", "which"], *lines])]
    if each:
        heading = ["network", "filters", "result", "scales", "parameters BU", "parameters TD", "MACs TD / BU", "checks"]
        parts += ["## Every network", _grid([heading, *(_cells(row) for row in rows)])]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> list[str]:
    cells = [row.model, row.filters, row.result]
    if not row.macs_bu:
        return [*cells, "", "", "", "", ""]
    size = [f"{row.parameters_bu:,}", f"{row.parameters_td:,}", f"{row.macs_td / row.macs_bu:.1f}"]
    return [*cells, row.scales, *size, str(row.checked)]


def _grid(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(lines[0])
    escaped = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (escaped[0], rule, *escaped[1:]))
