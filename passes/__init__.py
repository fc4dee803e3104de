"""The pipeline: from a bottom-up network to its top-down counterpart, one step a file.

A network is read, turned and built: `read`, `turn` and `build` are all of it, in order. Each of them makes a state of
:mod:`td_compiler.graph.states`, on which the passes of `READ`, `TURN` or `BUILD` then work. SPEC's rules and where they
are kept:

| rule | pass |
| --- | --- |
| 1.1 paths on an axis of their own | `sum_paths` |
| 1.0 prologue | `find_prologue` |
| 1.1 channels and sizes | `trace_channels` |
| 1.0 paddings | `adopt_padding` |
| 1.2 units between cut points, 1.3 downsampling | `find_units` |
| 2.13 two tensors between units | `find_cells`, which `find_units` calls |
| 1.4 stem, 1.5 head, stages | `find_stages` |
| 2.3 order, 2.7 stem downsampling | `reverse_stages` |
| 6.5 a classifier of pixels | `replace_head` |
| 2.6 filters and kernel sizes | `arrange_filters` |
| 2.4 projections of transition blocks | `match_shortcuts` |
| 2.4 strides and poolings, 2.8 sizes, 2.9 upsampling | `replace_downsampling`, which calls `same_size` |
| 2.4 plain transitions | `insert_transitions` |
| 2.1 pyramid, 2.2 entries | `insert_entries` |
| 2.5 merges | `insert_merges` |
| 2.6 widths through every operator | `set_widths`, `prune` |
| 2.6 sizes written as numbers | `rewrite_sizes` |
| 2.14 layers and weights used twice | `split_layers`, `tie_weights` |
| initial weights, 2.14 parametrised ones | `build_layers` |
| 2.10 the cost: the same numbers in less time | `choose_layout`, and `assemble` by `td_compiler.network.fast` |
| 2.10 the network and its report | `assemble` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch import nn

from td_compiler.capture.capture import capture, check_output
from td_compiler.capture.input_size import find_input_size
from td_compiler.errors import no_other_error
from td_compiler.graph.states import BottomUp, Building, Pass, Reading, TopDown
from td_compiler.network.base import TopDownNet
from td_compiler.options import Options, Task
from td_compiler.passes.adopt_padding import AdoptPadding
from td_compiler.passes.arrange_filters import ArrangeFilters
from td_compiler.passes.assemble import assemble
from td_compiler.passes.build_layers import build_layers
from td_compiler.passes.choose_layout import ChooseLayout
from td_compiler.passes.find_prologue import FindPrologue
from td_compiler.passes.find_stages import find_stages
from td_compiler.passes.find_units import find_units
from td_compiler.passes.insert_entries import InsertEntries
from td_compiler.passes.insert_merges import InsertMerges
from td_compiler.passes.insert_transitions import InsertTransitions
from td_compiler.passes.match_shortcuts import MatchShortcuts
from td_compiler.passes.replace_downsampling import ReplaceDownsampling
from td_compiler.passes.replace_head import ReplaceHead
from td_compiler.passes.reverse_stages import reverse_stages
from td_compiler.passes.rewrite_sizes import RewriteSizes
from td_compiler.passes.set_widths import SetWidths
from td_compiler.passes.split_layers import SplitLayers
from td_compiler.passes.sum_paths import SumPaths
from td_compiler.passes.tie_weights import TieWeights
from td_compiler.passes.trace_channels import TraceChannels

__all__ = ["BUILD", "READ", "TURN", "build", "cut", "read", "turn"]

READ: tuple[Pass[Reading], ...] = (
    SumPaths(),
    FindPrologue(),
    TraceChannels(),
    AdoptPadding(),
)

TURN: tuple[Pass[TopDown], ...] = (
    ReplaceHead(),
    ArrangeFilters(),
    MatchShortcuts(),
    ReplaceDownsampling(),
    InsertTransitions(),
    InsertEntries(),
    InsertMerges(),
    SetWidths(),
    RewriteSizes(),
    SplitLayers(),
)

BUILD: tuple[Pass[Building], ...] = (
    TieWeights(),
    ChooseLayout(),
)


def read(model: nn.Module, input_size: tuple[int, int, int] | None = None, task: Task | None = None) -> BottomUp:
    """Read a network: its graph, and the units and stages in it (SPEC 1).

    Args:
        model: a network that takes images (N, C, H, W). It is not changed.
        input_size: (C, H, W) at which it is read. Default: the model's own metadata, else found by trying.
        task: what it is to be used for, if its output has to fit that.

    Raises:
        ConversionError: if it cannot be read, or has no stages in an order that could be reversed.
    """
    with no_other_error("the network was read"):
        note = ""
        if input_size is not None:
            captured = capture(model, input_size)
        else:
            captured, input_size, note = find_input_size(model)
        if task is not None:
            check_output(captured, task)
    notes = [*([note] if note else []), *captured.notes]
    reading = Reading(model=model, input_size=input_size, captured=captured, image=captured.image, notes=notes)
    for step in READ:
        _run(step, reading)
    units, head = _run(find_units, reading)
    return _run(find_stages, reading, units, head)


def cut(bottom_up: BottomUp, options: Options) -> TopDown:
    """The parts of a network in top-down order, as they are in the source: what `turn` works on."""
    return _run(reverse_stages, bottom_up, options)


def turn(bottom_up: BottomUp, options: Options) -> TopDown:
    """Turn a network that was read: its top-down counterpart, of which all graphs and widths are known (SPEC 2).

    Raises:
        ConversionError: if it has no top-down counterpart with such options.
    """
    top_down = cut(bottom_up, options)
    for step in TURN:
        _run(step, top_down)
    return top_down


def build(top_down: TopDown) -> TopDownNet:
    """Build a top-down network: make its layers and put them together, with a report (SPEC 2.10, 2.14).

    Raises:
        ConversionError: if a layer of the source cannot take its new shape.
    """
    building = _run(build_layers, top_down)
    for step in BUILD:
        _run(step, building)
    return _run(assemble, building)


_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def _run(step: Callable[_Given, _Made], *given: _Given.args, **named: _Given.kwargs) -> _Made:
    """Run a step; another error than a ConversionError is told by the step that it comes from."""
    with no_other_error(f"the pass {getattr(step, '__name__', type(step).__name__)} ran"):
        return step(*given, **named)
