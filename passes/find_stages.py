"""Group the units into stem, stages and head (SPEC 1.3 to 1.5)."""

from __future__ import annotations

import itertools
import math

from torch import fx

from td_compiler.capture.places import at_line
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind, Pair
from td_compiler.graph.states import BottomUp, Reading
from td_compiler.graph.units import Boundary, Stage, Unit, UnitKind
from td_compiler.graph.walks import ancestors
from td_compiler.passes.find_units import refuse_decoder, shuffles
from td_compiler.passes.nodes import is_spatial, place_of
from td_compiler.passes.trace_channels import is_map

__all__ = ["find_stages"]


def find_stages(reading: Reading, units: list[Unit], head: list[fx.Node]) -> BottomUp:
    """A network as stages, made of its units and the nodes of its head; units that already classify move to the head.

    Raises:
        ConversionError: if it has no stages in an order that could be reversed.
    """
    _check_convolutions(reading, units, head)
    body = list(units)
    classifying: list[Unit] = []
    while len(body) > 1 and _classifies(reading, body, classifying, head):
        classifying.insert(0, body.pop())
    stem = _stem(body)
    stages, boundaries = _stages(body, stem)
    if len(stages) == 1:
        refuse_decoder(reading, [node for unit in body for node in unit.nodes])
        raise ConversionError(
            "the network has one resolution: it has no strided convolution or pooling before its head,"
            " so there is no top-down counterpart."
        )
    if not _is_reversible(body, stem):
        refuse_decoder(reading, [node for unit in body for node in unit.nodes])
        raise ConversionError(
            "the network has one resolution: only its stem makes the map smaller, so there is nothing to reverse."
        )
    _check_cuts(reading, body, stem)
    bottom_up = BottomUp(
        model=reading.model,
        input_size=reading.input_size,
        captured=reading.captured,
        image=reading.image,
        prologue=reading.prologue,
        notes=reading.notes,
        done=reading.done,
        units=body,
        stem=[unit for unit in stem if unit.kind is not UnitKind.POOL],
        stem_boundaries=_downsamplings_of(stem),
        stages=stages,
        boundaries=boundaries,
        head=[*(node for unit in classifying for node in unit.nodes), *head],
    )
    _ensures(bottom_up)
    return bottom_up


def _ensures(found: BottomUp) -> None:
    assert len(found.boundaries) == len(found.stages) - 1
    for stage, boundary, following in zip(found.stages, found.boundaries, found.stages[1:], strict=False):
        assert _times(stage.scale, boundary.factor) == following.scale


def _check_convolutions(reading: Reading, units: list[Unit], head: list[fx.Node]) -> None:
    late = next((node for node in head if is_spatial(reading, node)), None)
    if late is not None and is_map(head[0]):
        raise ConversionError(
            f"from {place_of(head[0])!r} on the network keeps several maps side by side, and its head reads"
            " each by itself: its stages have no order that could be reversed."
        )
    if late is not None:
        raise ConversionError(
            f"the network gives up the form (N, C, H, W) at {place_of(head[0])!r}, {at_line(facts(head[0]).place)},"
            f" before its last convolution {str(late.target)!r}: only CNNs whose head comes last convert."
        )
    kinds = {reading.kind(node) for unit in units for node in unit.nodes}
    if Kind.CONV not in kinds:
        raise ConversionError(
            "the network has no 2D convolution before its head: only CNNs have a top-down counterpart."
        )


def _check_cuts(reading: Reading, body: list[Unit], stem: list[Unit]) -> None:
    """Stages are found between single-tensor cut points: where several resolutions run side by side there are none.

    A stride that the unit makes good by growing again (a gate computed at half the size) is its own business.
    """
    for unit in body:
        balanced, mixed = _balanced(reading, unit)
        for node in balanced:
            facts(node).stride = (1, 1)
        most = _downsamplings(unit)
        allowed = 2 if unit in stem or len(unit.inputs) > 1 else 1  # a stem is a block, a cell reads two scales
        if most > allowed and balanced and not mixed:
            refuse_decoder(reading, unit.nodes)
        if most > allowed or mixed:
            first = next(node for node in unit.nodes if facts(node).stride != (1, 1))
            where = f"from {place_of(first)!r} to {place_of(unit.output)!r} the network"
            if mixed or _returns(unit) > most:
                raise ConversionError(
                    f"{where} keeps several resolutions side by side: its stages have no order that could be reversed."
                )
            raise ConversionError(
                f"{where} makes its map smaller {most} times and hands on two tensors or more at every point: without"
                " one that every path runs through its stages cannot be told apart; hand on one between them, by"
                " torch.cat."
            )


def _returns(unit: Unit) -> int:
    """How often a unit computes something at a finer resolution than what it has computed just before."""
    sizes = [math.prod(size) for node in unit.nodes if (size := facts(node).size) is not None and size != (1, 1)]
    return sum(later > 1.5 * earlier for earlier, later in itertools.pairwise(sizes))


def _balanced(reading: Reading, unit: Unit) -> tuple[list[fx.Node], bool]:
    """The strided nodes that growing ones behind them make good; and whether some have ways out of both kinds.

    Of those whose every way out grows, as many as that makes good; the others are the unit's own stride. Poolings come
    first, the innermost before the others. A growing node is told the first of its own, in `entrance`.
    """
    ways: dict[fx.Node, set[bool]] = {unit.output: {False}}  # node -> whether the ways from it to the output grow
    for node in reversed(unit.nodes):
        grows = reading.growth(node) != (1, 1)
        for before in node.all_input_nodes:
            if facts(before).carries:
                ways.setdefault(before, set()).update({True} if grows else ways.get(node, set()))
    strided = [node for node in unit.nodes if facts(node).stride != (1, 1)]
    mixed = any(ways.get(node) == {True, False} for node in strided)
    candidates = [node for node in strided if ways.get(node) == {True}]
    taken: list[fx.Node] = []
    for grown in [node for node in unit.nodes if reading.growth(node) != (1, 1)]:
        above, (up, along) = ancestors(grown), reading.growth(grown)
        levels: dict[Pair, list[fx.Node]] = {}  # scale -> what makes maps of it smaller, side by side
        for node in candidates:
            if node in above and node not in taken:
                levels.setdefault(facts(node.all_input_nodes[0]).scale, []).append(node)
        own: list[fx.Node] = []
        innermost = [*levels.values()][::-1]
        poolings = [nodes for nodes in innermost if all(reading.kind(n) is Kind.POOL for n in nodes)]
        for level in [*poolings, *(nodes for nodes in levels.values() if nodes not in poolings)]:
            down, across = facts(level[0]).stride
            if (up, along) != (1, 1) and up % down == 0 and along % across == 0:
                own += level
                up, along = up // down, along // across
        taken += own
        if own:
            facts(grown).entrance = min(own, key=unit.nodes.index)
    return taken, mixed


def _downsamplings(unit: Unit) -> int:
    """The most downsamplings on any path through a unit, along one axis: by rows, then by columns is one."""
    most: dict[fx.Node, Pair] = {}
    for node in unit.nodes:
        strides = facts(node).stride
        maps = node.all_input_nodes[:1] if strides != (1, 1) else node.all_input_nodes  # offsets are no way of a map
        before = [most[n] for n in maps if n in most] or [(0, 0)]
        rows, columns = (max(counts) for counts in zip(*before, strict=True))
        most[node] = rows + (strides[0] > 1), columns + (strides[1] > 1)
    return max(most[unit.output])


def _classifies(reading: Reading, body: list[Unit], behind: list[Unit], head: list[fx.Node]) -> bool:
    """Whether the last unit of the body belongs to the head (SPEC 1.5)."""
    unit = body[-1]
    if unit.stride != (1, 1) or unit.kind is UnitKind.BLOCK:
        return False
    if unit.kind is UnitKind.OTHER:
        return not shuffles(unit.nodes)
    if not head:  # an encoder: it ends in a map
        return False
    convolutions = [reading.layer(n) for n in unit.nodes if reading.kind(n) is Kind.CONV]
    if any(getattr(conv, "kernel_size", None) != (1, 1) for conv in convolutions):
        return False
    classes = facts(reading.captured.output).width
    expands = unit.width > facts(unit.input).width
    before_pooling = all(later.kind is UnitKind.OTHER for later in behind)
    return unit.width == classes or (expands and before_pooling)


def _stem(body: list[Unit]) -> list[Unit]:
    """The first units, as many as the stem has.

    With blocks: all before the first block, or that block if it is the first unit of all and strides. Without, or where
    this would leave no more than one stage: none, unless the image's own scale has nothing but a strided convolution to
    leave it, which then is the stem, with the pooling that follows it directly.
    """
    blocks = [i for i, unit in enumerate(body) if unit.kind is UnitKind.BLOCK]
    if blocks:
        is_stem_itself = blocks[0] == 0 and body[0].stride != (1, 1) and len(blocks) > 1
        before_blocks = body[: 1 if is_stem_itself else blocks[0]]
        if _is_reversible(body, before_blocks):
            return before_blocks
    if body[0].kind is UnitKind.CONV and body[0].stride != (1, 1) and len(body) > 1:
        return body[: 2 if body[1].kind is UnitKind.POOL and len(body) > 2 else 1]
    return []


def _is_reversible(body: list[Unit], stem: list[Unit]) -> bool:
    """Whether there are two stages with a body, or one beside a scale that the stem alone does not make."""
    stages, boundaries = _stages(body, stem)
    bodies = sum(bool(stage.units) for stage in stages)
    return bodies > 1 or (bodies == 1 and _downsamplings_of(stem) < len(boundaries))


def _downsamplings_of(units: list[Unit]) -> int:
    return sum(unit.stride != (1, 1) for unit in units)


def _stages(body: list[Unit], stem: list[Unit]) -> tuple[list[Stage], list[Boundary]]:
    stages = [Stage((1, 1))]
    boundaries: list[Boundary] = []
    for unit in body:
        if unit.stride != (1, 1):
            boundaries.append(Boundary(unit.stride, strided=unit.kind is not UnitKind.POOL and unit not in stem))
            stages.append(Stage(_times(stages[-1].scale, unit.stride)))
        if unit in stem or unit.kind is UnitKind.POOL:
            continue
        if unit.kind is UnitKind.OTHER and not stages[-1].units and boundaries:
            boundaries[-1].between.append(unit)
        else:
            stages[-1].units.append(unit)
    return stages, boundaries


def _times(scale: Pair, factor: Pair) -> Pair:
    return math.prod((scale[0], factor[0])), math.prod((scale[1], factor[1]))
