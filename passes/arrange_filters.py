"""Say how many filters every convolution is to have, and give kernels the size of their scale (SPEC 2.6)."""

from __future__ import annotations

import math

from torch import fx, nn

from td_compiler.graph.notes import facts, plan, source_of
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import Conversion, Pass
from td_compiler.graph.units import Stage, TopDownStage, Unit
from td_compiler.passes.branches import branches, residual_width
from td_compiler.passes.nodes import is_depthwise, is_spatial, kernel_parameter

__all__ = ["ArrangeFilters"]


class ArrangeFilters(Pass):
    """Sets `wanted` on the nodes that choose their width, and `stage.width`, the width of merge and entry.

    `mirror` and `reversed` keep every unit's bottom-up widths. `uniform` gives all units the low median of the stages'
    widths; what is inside a block scales along. The width of a dual path block is that of the part that it adds to.
    `head_width` does the same for the last unit alone.
    """

    def requires(self, conversion: Conversion) -> None:
        assert conversion.stages, "ReverseStages has not run"

    def apply(self, conversion: Conversion) -> None:
        common = _low_median(conversion) if conversion.options.filters == "uniform" else None
        for stage in conversion.stages:
            for unit in stage.units:
                _want(conversion, stage, unit, _unit_width(conversion, unit, common))
        for i, stage in enumerate(conversion.stages):
            stage.width = _stage_width(conversion, i, common)
        if common is not None:
            for stage in conversion.stages:
                for unit in stage.units:
                    entering = stage.width if unit is stage.units[0] else common
                    _settle(conversion, stage, unit, entering, _unit_width(conversion, unit, common))
        _widen_last(conversion)
        if conversion.options.filters == "reversed":
            for stage in conversion.stages:
                _fit_kernels(conversion, stage)

    def ensures(self, conversion: Conversion) -> None:
        assert all(stage.width > 0 for stage in conversion.stages)


def _low_median(conversion: Conversion) -> int:
    """The low median of the stages' widths, rounded to what all groups that read or make a unit's map divide."""
    stages = [stage for stage in conversion.found.stages if stage.units]
    widths = sorted(residual_width(conversion, stage.units[0]) for stage in stages)
    multiple = math.lcm(*(_groups(conversion, unit) for stage in stages for unit in stage.units))
    return max(1, round(widths[(len(widths) - 1) // 2] / multiple)) * multiple


def _groups(conversion: Conversion, unit: Unit) -> int:
    """What a unit's input and output widths, if they are the same, must be a multiple of."""
    made, multiple = branches(conversion, unit, unit.output), 1
    for node in unit.nodes:
        layer = conversion.layer(node)
        if isinstance(layer, nn.GroupNorm):
            groups, ends = layer.num_groups, [branches(conversion, unit, node)]
        elif isinstance(layer, nn.Conv2d) and not is_depthwise(layer):
            groups, ends = layer.groups, [branches(conversion, unit, node.all_input_nodes[0]), [node]]
        else:
            continue
        if any(end == made or end in [[read] for read in unit.inputs] for end in ends):
            multiple = math.lcm(multiple, groups)
    return multiple


def _unit_width(conversion: Conversion, unit: Unit, common: int | None) -> int:
    """How wide a unit's map is to be."""
    return unit.width if common is None else round(common * unit.width / residual_width(conversion, unit))


def _want(conversion: Conversion, stage: TopDownStage, unit: Unit, width: int) -> None:
    """Scale the widths that the unit's convolutions choose so that the unit's output has `width` channels."""
    for node in stage.spans[unit]:
        source = source_of(node)
        row = conversion.row(source)
        if row is not None and row.width is Width.FREE:
            plan(node).wanted = max(1, round(facts(source).width * width / unit.width))


def _settle(conversion: Conversion, stage: TopDownStage, unit: Unit, entering: int, width: int) -> None:
    """Where branches are concatenated, let the widest take up what rounding leaves of the unit's width."""
    parts = branches(conversion, unit, unit.output)
    free = [stage.copies[unit][node] for node in parts or () if node not in unit.inputs]
    if parts is None or not all(plan(node).wanted for node in free) or len(free) < 2:
        return
    rest = width - sum(plan(node).wanted for node in free) - entering * sum(node in unit.inputs for node in parts)
    widest = max(free, key=lambda node: plan(node).wanted)
    plan(widest).wanted = max(1, plan(widest).wanted + rest)


def _stage_width(conversion: Conversion, index: int, common: int | None) -> int:
    """C of SPEC 2.5: the body's first unit's width.

    A stage without body takes the stem's width, or, ahead of all bodies, that of the body it leads to; where there is
    no stem, that of the body before it.
    """
    stages = conversion.stages
    before = [_entering_width(conversion, stage, common) for stage in stages[:index] if stage.units]
    after = [_entering_width(conversion, stage, common) for stage in stages[index:] if stage.units]
    if stages[index].units or not before:
        return after[0]
    if conversion.found.stem:
        return common or _stem_width(conversion, stages[index])
    return before[-1]


def _stem_width(conversion: Conversion, stage: TopDownStage) -> int:
    """The width that the stem has at a scale; where it has none yet, at the image's own, that of its first map."""
    stem = conversion.found.stem
    reached = [unit for unit in stem if facts(unit.output).scale <= stage.scale]
    first = [unit for unit in stem if facts(unit.output).scale == facts(stem[0].output).scale]
    return (reached or first)[-1].width


def _entering_width(conversion: Conversion, stage: TopDownStage, common: int | None) -> int:
    """What a stage's first unit wants: its own width, or, if it adds channels to those it reads, as many fewer.

    A transition block is read by the merge, not the other way round, so there it is the block's own width.
    """
    unit = stage.units[0]
    width = _unit_width(conversion, unit, common)
    if stage.transition == "block" or not _grows(conversion, unit):
        return width
    parts = branches(conversion, unit, unit.output)
    if parts is None or parts.count(unit.input) != 1:
        return max(1, round(facts(unit.input).width * width / unit.width))
    added = sum(plan(stage.copies[unit][node]).wanted for node in parts if node not in unit.inputs)
    return max(1, width - added)


_KEEP_CHANNELS = {Kind.POOL, Kind.PAD, Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT}


def _grows(conversion: Conversion, unit: Unit) -> bool:
    """Whether a unit concatenates what it makes to what it reads, as a dense block or a reduction by pooling does."""
    inside, stack, concatenates = set(unit.nodes), [unit.output], False
    reached: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in unit.inputs:
            return concatenates
        row = conversion.row(node)
        is_sum = row is not None and row.width is Width.SUM
        if node in inside and node not in reached and (is_sum or conversion.kind(node) in _KEEP_CHANNELS):
            reached.add(node)
            concatenates |= is_sum
            stack.extend(n for n in node.all_input_nodes if facts(n).carries)
    return False


def _widen_last(conversion: Conversion) -> None:
    wanted = conversion.options.head_width
    stage = conversion.stages[-1]
    if wanted is None:
        return
    if not stage.units:
        stage.width = max(stage.width, wanted)
        return
    last = stage.units[-1]
    width = conversion.stages[-1].width if conversion.options.filters == "uniform" else last.width
    _want(conversion, stage, last, max(width, wanted))
    if len(stage.units) == 1:
        stage.width = max(stage.width, wanted)


def _fit_kernels(conversion: Conversion, stage: TopDownStage) -> None:
    """Give the body's spatial convolutions, in order, the kernel sizes of the scale's own body."""
    native = _spatial(conversion, stage.native)
    if not native or not stage.units:
        return
    convolutions = [
        node for unit in stage.units for node in stage.spans[unit] if _has_own_kernel(conversion, source_of(node))
    ]
    for i, node in enumerate(convolutions):
        kernel = native[min(i, len(native) - 1)]
        if node.op == "call_module":
            conversion.layers[str(node.target)].changes["kernel_size"] = kernel
        elif (weight := kernel_parameter(node)) is not None:
            plan(node).kernel_size = plan(weight).kernel_size = kernel


def _spatial(conversion: Conversion, stage: Stage) -> list[tuple[int, ...]]:
    nodes = [node for unit in stage.units for node in unit.nodes if _has_own_kernel(conversion, node)]
    return [conversion.layer(node).kernel_size for node in nodes]  # type: ignore[union-attr, misc]


def _has_own_kernel(conversion: Conversion, node: fx.Node) -> bool:
    """Whether a bottom-up node is a convolution over pixels whose kernel is trained: a blur's is no scale's."""
    weight = kernel_parameter(node) if node.op == "call_function" else None
    is_fixed = weight is not None and not isinstance(facts(weight).value, nn.Parameter)
    return is_spatial(conversion, node) and not is_fixed
