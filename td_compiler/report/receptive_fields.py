"""Receptive fields: how many of the image's pixels the maps of a stage depend on (SPEC 6.6; paper section 3.2, eq. 1).

Instead of adding up r_i = r_(i-1) + (k_i - 1) m_(i-1) from the image on, the pixels that one pixel of a map reads are
followed back through the graph, operator by operator. In a chain of convolutions and poolings both give the same; under
upsampling only the second is exact: with a nearest upsampling by f, two neighbouring pixels read one coarser pixel or
two, so a field depends on the pixel's phase, and the numbers here are those of the phase that sees most.

Borders are left out: a field is that of a pixel whose field lies inside the image, so it may be larger than the image
that a network is usually given. Global poolings that gate (squeeze-excitation, global context) see all of the image by
definition and are left out too: what is counted is the way of the features, not of their gates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx, nn

from td_compiler.capture.evaluate import evaluate
from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Pair
from td_compiler.graph.units import scale_key
from td_compiler.layers.pyramid import Pyramid, factor_pair
from td_compiler.network.base import TopDownNet
from td_compiler.network.segments import carried, handed_on
from td_compiler.passes import read
from td_compiler.report.reach import REACH_OF_FILTER, Span, UnknownReach, Walk, bilinear, hull, window
from td_compiler.report.report import ReceptiveField, Report

__all__ = ["receptive_fields", "receptive_fields_bottom_up", "with_receptive_fields"]


def receptive_fields(network: TopDownNet) -> dict[str, ReceptiveField | None]:
    """The receptive field of every stage of a top-down network, by the stage's name, finest first.

    A map of a top-down network has a field through every entry that reaches it: through its own scale's, which is the
    smallest as a rule, through the next coarser one's, and so on. `smallest` is the smallest of them, `largest` is what
    all of them see together. The filter that brings the image to a scale is counted in.

    Returns:
        Stage name -> field in image pixels; None where the pyramid's downsampling is a callable, whose reach is not
        known.
    """
    stages = network.segments[:-1]
    fields: dict[str, ReceptiveField | None] = {}
    for index in reversed(range(len(stages))):
        try:
            fields[stages[index].name] = _field(_through_entries(network, index))
        except UnknownReach:
            fields[stages[index].name] = None
    return fields


def receptive_fields_bottom_up(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, ReceptiveField | None]:
    """The receptive field of a bottom-up network after its last layer at every scale, finest first.

    Args:
        model: a network that :func:`td_compiler.reverse` converts.
        input_size: (C, H, W) at which it is read.

    Returns:
        Stage name, as in the top-down network -> field in image pixels, whose `smallest` and `largest` are the same:
        the image enters once. Scales at which the network computes nothing are not there. None where an operator's
        reach is not known.

    Raises:
        ConversionError: if the network does not convert.
    """
    found = read(model, input_size)
    last = {facts(unit.output).scale: unit.output for unit in found.units}
    coarsest = found.stages[-1].scale
    walk = Walk(found.captured.module, lambda node: facts(node).value)
    fields: dict[str, ReceptiveField | None] = {}
    for scale, output in last.items():
        try:
            spans = walk.back(found.captured.graph, {output: _start(coarsest, scale)}, found.image)
            fields[f"stage{scale_key(scale)}"] = _field([spans[found.image]])
        except UnknownReach:
            fields[f"stage{scale_key(scale)}"] = None
    return fields


def with_receptive_fields(report: Report, model: nn.Module, network: TopDownNet) -> Report:
    """A report of `network`, made from `model`, with the receptive fields of both in its costs; the heads have none."""
    fields = receptive_fields_bottom_up(model, report.input_size), receptive_fields(network)
    stages = []
    for row in report.stages:
        bottom_up, top_down = (
            None if cost is None else replace(cost, receptive_field=of.get(row.name))
            for cost, of in zip((row.bottom_up, row.top_down), fields, strict=True)
        )
        assert top_down is not None
        stages.append(replace(row, bottom_up=bottom_up, top_down=top_down))
    return replace(report, stages=tuple(stages))


def _field(spans: Iterable[Span]) -> ReceptiveField:
    """The field of the phase that sees most, through the entry that sees least and through all together."""
    spans = list(spans)
    sizes = [(last - first + 1).max(axis=1) for first, last in spans]
    first, last = hull(spans)
    smallest, largest = np.min(sizes, axis=0), (last - first + 1).max(axis=1)
    return ReceptiveField((int(smallest[0]), int(smallest[1])), (int(largest[0]), int(largest[1])))


def _start(coarsest: Pair, scale: Pair) -> Span:
    """One pixel of each phase that a map of a scale can have relative to the coarsest one."""
    pixels = np.tile(np.arange(math.lcm(*(-(-c // s) for c, s in zip(coarsest, scale, strict=True)))), (2, 1))
    return pixels, pixels


def _through_entries(network: TopDownNet, index: int) -> list[Span]:
    """What the pixels of a stage's map see of the image, one span per entry that reaches them."""
    stages = network.segments[:-1]
    scales = [factor_pair(stage.scale) for stage in stages]
    state = {"x": _start(scales[0], scales[index])}  # what is looked at of what a stage hands on
    seen: list[Span] = []
    while state:
        growth = _ratio(scales[index - 1], scales[index]) if index else (1, 1)
        walk = Walk(lambda node: _module(network, node), lambda node: _parameter(network, node), growth)
        graph = stages[index].graph
        spans = walk.back(
            graph, {node: state[name] for name, node in carried(handed_on(graph)).items() if name in state}
        )
        read = {str(node.target): pixels for node, pixels in spans.items() if node.op == "placeholder"}
        seen.append(_through_pyramid(network.pyramid, scales, index, read.pop("image")))
        state, index = read, index - 1
    return seen


def _ratio(coarse: Pair, fine: Pair) -> Pair:
    return coarse[0] // fine[0], coarse[1] // fine[1]


def _module(network: nn.Module, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _parameter(network: nn.Module, node: fx.Node) -> Any:
    """The value of a node that reads parameters alone, such as a filter."""
    if node.op == "placeholder":
        raise UnknownReach
    return evaluate(node, network, lambda source: _parameter(network, source))


def _through_pyramid(pyramid: Pyramid, scales: list[Pair], index: int, span: Span) -> Span:
    """The pixels of the image that pixels of the pyramid's level see; `scales` are coarsest first."""
    seen = _through_filter(pyramid, scales[index], span)
    if pyramid.downsample == "laplacian" and index:
        coarser = bilinear(_ratio(scales[index - 1], scales[index]))(span)
        return hull([seen, _through_filter(pyramid, scales[index - 1], coarser)])
    return seen


def _through_filter(pyramid: Pyramid, scale: Pair, span: Span) -> Span:
    if scale == (1, 1):
        return span
    if not isinstance(pyramid.downsample, str):
        raise UnknownReach
    reach = REACH_OF_FILTER[pyramid.downsample]
    first, last = zip(*(reach(f) if f > 1 else (0, 0) for f in scale), strict=True)
    return window(first, last, scale)(span)
