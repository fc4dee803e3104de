"""Which option would make a top-down network cheaper, and by how much: the papers name cost as its weakness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from td_compiler.capture.skeleton import skeleton
from td_compiler.convert import reverse
from td_compiler.errors import ConversionError
from td_compiler.report.report import Report

__all__ = ["Saving", "savings"]

_CHEAPER: tuple[tuple[str, str], ...] = (
    ("head", "pooled"),
    ("merge", "add"),
    ("stem", "trailing"),
    ("filters", "uniform"),
    ("filters", "mirror"),
)
_LEAST = 0.05  # of the products or of the memory: what is worth a line


@dataclass(frozen=True)
class Saving:
    """What another value of an option would save.

    Attributes:
        option, value: the option, as `tdc` and :func:`td_compiler.reverse` know it, and its value.
        macs, activation_bytes: the products and the memory that would be left, as shares of those that there are.
    """

    option: str
    value: str
    macs: float
    activation_bytes: float


def savings(model: nn.Module, report: Report, options: Mapping[str, Any]) -> list[Saving]:
    """Convert a network again with one option changed at a time, without weights, and compare the costs.

    Args:
        model: the source.
        report: of its conversion.
        options: with which it was converted.

    Returns:
        The options that lower products or memory by a twentieth at least, what saves most first.
    """
    return sorted(_savings(skeleton(model), report, options), key=lambda saving: saving.macs * saving.activation_bytes)


def _savings(bones: nn.Module, report: Report, options: Mapping[str, Any]) -> Iterator[Saving]:
    now, size = report.options, report.input_size
    for option, value in _CHEAPER:
        if now is None or getattr(now, option) == value:
            continue
        try:
            other = reverse(bones, **{**options, option: value, "input_size": size}).report
        except ConversionError:  # not every network has a counterpart in every arrangement
            continue
        macs, memory = (_total(other, field) / _total(report, field) for field in ("macs", "activation_bytes"))
        if min(macs, memory) <= 1 - _LEAST and max(macs, memory) <= 1:
            yield Saving(option, value, macs, memory)


def _total(report: Report, field: str) -> int:
    total: int = sum(getattr(row.top_down, field) for row in report.stages)
    return total
