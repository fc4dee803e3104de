"""Say how many filters every convolution is to have, and give kernels the size of their scale (SPEC 2.6)."""

from __future__ import annotations

import math

from torch import fx, nn

from td_compiler.errors import ConversionError
from td_compiler.graph.notes import facts, plan, source_of
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import Pass, TopDown
from td_compiler.graph.units import Stage, TopDownStage, Unit
from td_compiler.passes.branches import branches, residual_width
from td_compiler.passes.nodes import is_depthwise, is_spatial, kernel_parameter
from td_compiler.passes.split_layers import split_layer

__all__ = ["ArrangeFilters"]


class ArrangeFilters(Pass[TopDown]):
    """Sets `wanted` on the nodes that choose their width, and `stage.width`, the width of merge and entry.

    `mirror` and `reversed` keep every unit's bottom-up widths. `uniform` gives all units the low median of the stages'
    widths; what is inside a block scales along. The width of a dual path block is that of the part that it adds to.
    `head_width` does the same for the last unit alone.
    """

    def requires(self, top_down: TopDown) -> None:
        assert top_down.stages, "there is no stage"

    def apply(self, top_down: TopDown) -> None:
        common = _low_median(top_down) if top_down.options.filters == "uniform" else None
        for stage in top_down.stages:
            for unit in stage.units:
                _want(top_down, stage, unit, _unit_width(top_down, unit, common))
        for i, stage in enumerate(top_down.stages):
            stage.width = _stage_width(top_down, i, common)
        if common is not None:
            for stage in top_down.stages:
                for unit in stage.units:
                    entering = stage.width if unit is stage.units[0] else common
                    _settle(top_down, stage, unit, entering, _unit_width(top_down, unit, common))
        _widen_last(top_down)
        if top_down.options.filters == "reversed":
            wanted = [pair for stage in top_down.stages for pair in _fitting_kernels(top_down, stage)]
            _fit_kernels(top_down, wanted)

    def ensures(self, top_down: TopDown) -> None:
        assert all(stage.width > 0 for stage in top_down.stages)


def _low_median(top_down: TopDown) -> int:
    """The low median of the stages' widths, rounded to what all groups that read or make a unit's map divide."""
    stages = [stage for stage in top_down.bottom_up.stages if stage.units]
    widths = sorted(residual_width(top_down.bottom_up, stage.units[0]) for stage in stages)
    multiple = math.lcm(*(_groups(top_down, unit) for stage in stages for unit in stage.units))
    return max(1, round(widths[(len(widths) - 1) // 2] / multiple)) * multiple


def _groups(top_down: TopDown, unit: Unit) -> int:
    """What a unit's input and output widths, if they are the same, must be a multiple of."""
    made, multiple = branches(top_down.bottom_up, unit, unit.output), 1
    for node in unit.nodes:
        layer = top_down.bottom_up.layer(node)
        if isinstance(layer, nn.GroupNorm):
            groups, ends = layer.num_groups, [branches(top_down.bottom_up, unit, node)]
        elif isinstance(layer, nn.Conv2d) and not is_depthwise(layer):
            groups, ends = layer.groups, [branches(top_down.bottom_up, unit, node.all_input_nodes[0]), [node]]
        else:
            continue
        if any(end == made or end in [[read] for read in unit.inputs] for end in ends):
            multiple = math.lcm(multiple, groups)
    return multiple


def _unit_width(top_down: TopDown, unit: Unit, common: int | None) -> int:
    """How wide a unit's map is to be."""
    return unit.width if common is None else round(common * unit.width / residual_width(top_down.bottom_up, unit))


def _want(top_down: TopDown, stage: TopDownStage, unit: Unit, width: int) -> None:
    """Scale the widths that the unit's convolutions choose so that the unit's output has `width` channels."""
    for node in stage.spans[unit]:
        source = source_of(node)
        row = top_down.bottom_up.row(source)
        if row is not None and row.width is Width.FREE:
            plan(node).wanted = max(1, round(facts(source).width * width / unit.width))


def _settle(top_down: TopDown, stage: TopDownStage, unit: Unit, entering: int, width: int) -> None:
    """Where branches are concatenated, let the widest take up what rounding leaves of the unit's width."""
    parts = branches(top_down.bottom_up, unit, unit.output)
    free = [stage.copies[unit][node] for node in parts or () if node not in unit.inputs]
    if parts is None or not all(plan(node).wanted for node in free) or len(free) < 2:
        return
    rest = width - sum(plan(node).wanted for node in free) - entering * sum(node in unit.inputs for node in parts)
    widest = max(free, key=lambda node: plan(node).wanted)
    plan(widest).wanted = max(1, plan(widest).wanted + rest)


def _stage_width(top_down: TopDown, index: int, common: int | None) -> int:
    """C of SPEC 2.5: the body's first unit's width.

    A stage without body takes the stem's width, or, ahead of all bodies, that of the body it leads to; where there is
    no stem, that of the body before it.
    """
    stages = top_down.stages
    before = [_entering_width(top_down, stage, common) for stage in stages[:index] if stage.units]
    after = [_entering_width(top_down, stage, common) for stage in stages[index:] if stage.units]
    if stages[index].units or not before:
        return after[0]
    if top_down.bottom_up.stem:
        return common or _stem_width(top_down, stages[index])
    return before[-1]


def _stem_width(top_down: TopDown, stage: TopDownStage) -> int:
    """The width that the stem has at a scale; where it has none yet, at the image's own, that of its first map."""
    stem = top_down.bottom_up.stem
    reached = [unit for unit in stem if facts(unit.output).scale <= stage.scale]
    first = [unit for unit in stem if facts(unit.output).scale == facts(stem[0].output).scale]
    return (reached or first)[-1].width


def _entering_width(top_down: TopDown, stage: TopDownStage, common: int | None) -> int:
    """What a stage's first unit wants: its own width, or, if it adds channels to those it reads, as many fewer.

    A transition block is read by the merge, not the other way round, so there it is the block's own width.
    """
    unit = stage.units[0]
    width = _unit_width(top_down, unit, common)
    if stage.transition == "block" or not _grows(top_down, unit):
        return width
    parts = branches(top_down.bottom_up, unit, unit.output)
    if parts is None or parts.count(unit.input) != 1:
        return max(1, round(facts(unit.input).width * width / unit.width))
    added = sum(plan(stage.copies[unit][node]).wanted for node in parts if node not in unit.inputs)
    return max(1, width - added)


_KEEP_CHANNELS = {Kind.POOL, Kind.PAD, Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT}


def _grows(top_down: TopDown, unit: Unit) -> bool:
    """Whether a unit concatenates what it makes to what it reads, as a dense block or a reduction by pooling does."""
    inside, stack, concatenates = set(unit.nodes), [unit.output], False
    reached: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in unit.inputs:
            return concatenates
        row = top_down.bottom_up.row(node)
        is_sum = row is not None and row.width is Width.SUM
        if node in inside and node not in reached and (is_sum or top_down.bottom_up.kind(node) in _KEEP_CHANNELS):
            reached.add(node)
            concatenates |= is_sum
            stack.extend(n for n in node.all_input_nodes if facts(n).carries)
    return False


def _widen_last(top_down: TopDown) -> None:
    wanted = top_down.options.head_width
    stage = top_down.stages[-1]
    if wanted is None:
        return
    if not stage.units:
        stage.width = max(stage.width, wanted)
        return
    last = stage.units[-1]
    width = top_down.stages[-1].width if top_down.options.filters == "uniform" else last.width
    _want(top_down, stage, last, max(width, wanted))
    if len(stage.units) == 1:
        stage.width = max(stage.width, wanted)


def _fitting_kernels(top_down: TopDown, stage: TopDownStage) -> list[tuple[fx.Node, str, tuple[int, ...]]]:
    """The body's spatial convolutions, in order, with the stage's name and the kernel sizes of its scale's own body."""
    native = _spatial(top_down, stage.native)
    nodes = [node for unit in stage.units for node in stage.spans[unit] if _has_own_kernel(top_down, source_of(node))]
    return [(node, stage.key, native[min(i, len(native) - 1)]) for i, node in enumerate(nodes)] if native else []


def _fit_kernels(top_down: TopDown, wanted: list[tuple[fx.Node, str, tuple[int, ...]]]) -> None:
    """Give convolutions their kernel sizes: a layer that is to have several comes apart (SPEC 2.14).

    Raises:
        ConversionError: if a parameter outside layers is to have several.
    """
    uses: dict[str, list[tuple[fx.Node, str, tuple[int, ...]]]] = {}
    for node, key, kernel in wanted:
        if node.op == "call_module":
            uses.setdefault(str(node.target), []).append((node, key, kernel))
        elif (weight := kernel_parameter(node)) is not None:
            plan(node).kernel_size = plan(weight).kernel_size = kernel
            uses.setdefault(str(weight.target), []).append((node, key, kernel))
    for path, found in uses.items():
        kernels = list(dict.fromkeys(kernel for _, _, kernel in found))
        layer = top_down.layers.get(path)
        if layer is None and len(kernels) > 1:
            sizes = " and ".join("x".join(map(str, kernel)) for kernel in kernels)
            raise ConversionError(
                f"the kernel {path} is used at several scales, whose kernels are {sizes} (SPEC 2.6): give every use a"
                " kernel of its own, or convert with filters='mirror'."
            )
        if layer is None:
            continue
        own = layer.get("kernel_size")
        names = {own if own in kernels else kernels[0]: path}
        for node, key, kernel in found:
            if kernel not in names:
                names[kernel] = split_layer(top_down, path, key)
                top_down.layers[names[kernel]].changes["kernel_size"] = kernel
            node.target = names[kernel]
        layer.changes["kernel_size"] = next(iter(names))
        if len(names) > 1:
            others = ", ".join(f"{name} ({'x'.join(map(str, kernel))})" for kernel, name in names.items())
            top_down.notes.append(
                f"{path} is one layer in the source; its uses differ in kernel size here, so it has come apart:"
                f" {others}."
            )


def _spatial(top_down: TopDown, stage: Stage) -> list[tuple[int, ...]]:
    nodes = [node for unit in stage.units for node in unit.nodes if _has_own_kernel(top_down, node)]
    return [top_down.bottom_up.layer(node).kernel_size for node in nodes]  # type: ignore[union-attr, misc]


def _has_own_kernel(top_down: TopDown, node: fx.Node) -> bool:
    """Whether a bottom-up node is a convolution over pixels whose kernel is trained: a blur's is no scale's."""
    weight = kernel_parameter(node) if node.op == "call_function" else None
    is_fixed = weight is not None and not isinstance(facts(weight).value, nn.Parameter)
    return is_spatial(top_down.bottom_up, node) and not is_fixed
