"""What the scaling experiment shows: a plot and a table for each axis, and the exponents of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.powers import PowerLaw, fit_power
from td_compiler.benchmarks.lab.table import slug
from td_compiler.benchmarks.show.plots import legend
from td_compiler.benchmarks.show.style import figure, line
from td_compiler.benchmarks.show.tables import Cell, Figure, Section, Table
from td_compiler.report.tables import byte_count, short_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

__all__ = ["scaling_section"]

_AXES = {"batch": "batch size", "side": "image side", "depth": "layers"}
_NETWORKS = {"bu": "BU", "td": "TD"}
_FEWEST = 3  # points, for a fit of the larger half
_FLAT = 0.02  # an exponent of what does not grow: no line is drawn for it


@dataclass(frozen=True)
class _Quantity:
    """Something measured.

    Attributes:
        title: its name, with its unit.
        of: its value, from the figures of one network; None where it was not measured.
        shown: the value in a table.
    """

    title: str
    of: Callable[[Mapping[str, Any]], float | None]
    shown: Callable[[float], str]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


_QUANTITIES = (
    _Quantity("Inference (s)", lambda figures: median(figures["inference"]), _milliseconds),
    _Quantity("Training step (s)", lambda figures: median(figures["training"]), _milliseconds),
    _Quantity("Kept for backward (bytes)", lambda figures: figures["saved"], byte_count),
    _Quantity("Peak of a step (bytes)", lambda figures: figures["peak"], byte_count),
    _Quantity("MACs", lambda figures: figures["macs"], short_count),
    _Quantity("Parameters", lambda figures: figures["parameters"], short_count),
)
_TIMES = {"inference": "Inference", "training": "Training step"}


@dataclass(frozen=True)
class _Sweep:
    """The results on one axis for one network, sorted, without the points that were left out."""

    axis: str
    network: str
    results: Sequence[Result]
    left_out: Sequence[Result]

    @property
    def title(self) -> str:
        """One line."""
        job = (self.results or self.left_out)[0].job
        fixed = {"batch": f"batch {job['batch']}", "side": f"{job['side']} x {job['side']} pixels"}
        rest = ", ".join(text for axis, text in fixed.items() if axis != self.axis)
        network = "pre-activation ResNets" if self.axis == "depth" else self.network
        return f"{network} against {_AXES[self.axis]}, {rest}"

    @property
    def sizes(self) -> list[int]:
        """The points on the axis."""
        return [result.job[self.axis] for result in self.results]

    def values(self, quantity: _Quantity, network: str) -> list[float]:
        """What a network costs at each point; empty where it was not measured."""
        values = [quantity.of(result.figures[network]) for result in self.results]
        return [] if None in values else [value for value in values if value is not None]

    def laws(self, quantity: _Quantity, network: str) -> tuple[PowerLaw | None, PowerLaw | None]:
        """Fitted to all points, and to the larger half of them."""
        sizes, values = self.sizes, self.values(quantity, network)
        if not values:
            return None, None
        half = len(sizes) // 2
        top = fit_power(sizes[half:], values[half:]) if len(sizes) - half >= _FEWEST else None
        return fit_power(sizes, values), top


def scaling_section(results: Sequence[Result]) -> Section:
    """Plots and tables by axis and network, and the exponents of all."""
    sweeps = _sweeps(results)
    return Section(
        title="Cost against size",
        intro="What a bottom-up network (BU) and its top-down network (TD) cost as batch, image or depth grow; both"
        " were measured in turns. A straight line in these plots is a power law, its slope the exponent.",
        tables=[_exponents(sweeps), *map(_table, sweeps)],
        figures=[_figure(sweep) for sweep in sweeps if sweep.results],
    )


def _sweeps(results: Sequence[Result]) -> list[_Sweep]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.job["axis"], result.job["network"]), []).append(result)
    return [
        _Sweep(
            axis,
            network,
            [result for result in found if "left_out" not in result.figures],
            [result for result in found if "left_out" in result.figures],
        )
        for (axis, network), each in groups.items()
        for found in [sorted(each, key=lambda result: int(result.job[axis]))]
    ]


def _exponents(sweeps: Sequence[_Sweep]) -> Table:
    return Table(
        title="Fitted exponents",
        columns=("network", "of", "against", *("BU", "TD"), *("BU, larger half", "TD, larger half")),
        rows=tuple(
            (sweep.network, quantity.title.partition(" (")[0], _AXES[sweep.axis], *_fits(sweep, quantity))
            for sweep in sweeps
            for quantity in _QUANTITIES
        ),
        note="Least squares on logarithms, ± the standard error of the slope; then for the larger half of the sizes"
        " alone, where what does not grow counts least.",
    )


def _fits(sweep: _Sweep, quantity: _Quantity) -> list[Cell]:
    laws = [sweep.laws(quantity, network) for network in _NETWORKS]
    return [str(law) if law else None for which in (0, 1) for law in (both[which] for both in laws)]


def _table(sweep: _Sweep) -> Table:
    headings = [quantity.title.partition(" (")[0] for quantity in _QUANTITIES]
    return Table(
        title=sweep.title,
        columns=(_AXES[sweep.axis], *headings, *(f"{title}, TD / BU" for title in _TIMES.values())),
        rows=tuple(_row(sweep, result) for result in sweep.results),
        note=" ".join(["BU → TD; times are medians, their ratio the median of pairs.", *map(_why, sweep.left_out)]),
    )


def _row(sweep: _Sweep, result: Result) -> tuple[Cell, ...]:
    pairs = [[quantity.of(result.figures[network]) for network in _NETWORKS] for quantity in _QUANTITIES]
    costs = [
        " → ".join("-" if value is None else quantity.shown(value) for value in pair)
        for quantity, pair in zip(_QUANTITIES, pairs, strict=True)
    ]
    return (str(result.job[sweep.axis]), *costs, *(f"{_ratio(result, kind):.2f}" for kind in _TIMES))


def _ratio(result: Result, kind: str) -> float:
    """The median over the repeats of TD's seconds over BU's."""
    below, above = (result.figures[network][kind] for network in _NETWORKS)
    return median(td / bu for bu, td in zip(below, above, strict=True))


def _why(result: Result) -> str:
    return f"Left out: {result.name} ({result.figures['left_out']})."


def _figure(sweep: _Sweep) -> Figure:
    name = f"scaling-{sweep.axis}-{slug(sweep.network)}"
    caption = "Dots are measured, lines the fitted power laws with their exponents."
    return Figure(sweep.title, name, partial(_plot, sweep), caption)


def _plot(sweep: _Sweep) -> Plot:
    """A panel for each quantity, both axes logarithmic."""
    from matplotlib.ticker import NullLocator

    plot = figure(6.5, 3.9)
    for axes, quantity in zip(plot.subplots(2, 3).flat, _QUANTITIES, strict=True):
        for network, arrangement in (("bu", "bu"), ("td", "mirror")):
            values = sweep.values(quantity, network)
            if not values:
                continue
            look: dict[str, Any] = line(arrangement)
            axes.plot(sweep.sizes, values, **{**look, "linestyle": ""})
            law = sweep.laws(quantity, network)[0]
            if law and law.exponent > _FLAT:
                fitted = [law(size) for size in sweep.sizes]
                axes.plot(sweep.sizes, fitted, color=look["color"], linestyle=look["linestyle"], linewidth=1)
                height = 0.04 if network == "bu" else 0.14
                axes.text(0.97, height, str(law), color=look["color"], transform=axes.transAxes, ha="right", fontsize=7)
        axes.set(xscale="log", yscale="log", title=quantity.title)
        axes.set_xticks(sweep.sizes, [str(size) for size in sweep.sizes], fontsize=7)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True)
    plot.supxlabel(_AXES[sweep.axis].capitalize(), fontsize=8)
    legend(plot)
    return plot
