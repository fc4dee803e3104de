"""What a conversion found and did, stage by stage: the data behind `td.report` and `tdc inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from td_compiler.graph.laws import Law
    from td_compiler.options import Options

__all__ = ["Cost", "ReceptiveField", "Report", "StageReport"]


class ReceptiveField(NamedTuple):
    """What one pixel of a stage's map sees of the image, (height, width) in image pixels.

    Attributes:
        smallest: through the entry that sees least.
        largest: through all entries together.
    """

    smallest: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """The size and cost of one stage (or the head) of one network, for a batch of one image.

    Attributes:
        scale: the factor by which the maps are smaller than the image.
        size: height and width of the last map.
        width: filters (channels) of the last map.
        units: blocks or convolution units, entries, transitions and merges not counted.
        parameters: trainable and frozen parameters.
        macs: multiply-accumulate operations of convolutions and linear layers.
        activation_bytes: memory of every layer's output.
        receptive_field: of the last map, where `with_receptive_fields` has added it.
    """

    scale: int | tuple[int, int]
    size: tuple[int, int]
    width: int
    units: int
    parameters: int
    macs: int
    activation_bytes: int
    receptive_field: ReceptiveField | None = None


@dataclass(frozen=True)
class StageReport:
    """One row: what the BU network and the TD network do at one scale, or in the head.

    BU costs at a scale include the part of the stem that works there; TD costs include entry, transition and merge.
    `bottom_up` is None where the BU network computes nothing at that scale (the image itself, before a strided stem).
    """

    name: str
    scale: int | tuple[int, int]
    bottom_up: Cost | None
    top_down: Cost


@dataclass(frozen=True, repr=False)
class Report:
    """What was found in the source and done to it.

    Attributes:
        source: the class name of the source network.
        input_size: (C, H, W) at which sizes and costs are given.
        scales: the pyramid's scales, finest first.
        stages: a row per scale, finest first, then the head.
        notes: what a user should know: parts dropped, sizes inferred, and the like; one sentence each.
        options: how it was converted; None where that is not known.
        initialisation: parameter of the top-down network -> the law by which its first values are drawn (SPEC 8.4).
        new_layers: the paths of the layers that the source has not.
    """

    source: str
    input_size: tuple[int, int, int]
    scales: tuple[int | tuple[int, int], ...]
    stages: tuple[StageReport, ...]
    notes: tuple[str, ...] = ()
    options: Options | None = None
    initialisation: Mapping[str, Law] = field(default_factory=dict, repr=False, compare=False)
    new_layers: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def __str__(self) -> str:
        """The table of `tdc inspect`, as wide as the terminal."""
        from td_compiler.report.tables import report_text  # imports rich, which conversions have no use for

        return report_text(self)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.input_size))
        return f"<Report of {self.source} at {size}: scales {', '.join(map(str, self.scales))}; print it for the table>"
