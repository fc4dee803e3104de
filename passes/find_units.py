"""Cut the bottom-up graph into units, at the nodes through which every path runs (SPEC 1.2, 1.3)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler.capture.places import at_line
from td_compiler.errors import ConversionError
from td_compiler.graph.norms import join_norms, written_norm
from td_compiler.graph.notes import Gate, facts, sides_of
from td_compiler.graph.operators import Kind, Width, pool_kernel
from td_compiler.graph.states import Reading
from td_compiler.graph.units import Unit, UnitKind
from td_compiler.passes.find_cells import State, joins_paths, split_cells
from td_compiler.passes.find_prologue import cut_pieces
from td_compiler.passes.nodes import is_depthwise, module_path, place_of
from td_compiler.passes.trace_channels import is_map

__all__ = ["find_units", "pools_all", "refuse_decoder", "shuffles"]

_GENERIC = {nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Module}  # what holds blocks, or their parts, of any kind


def find_units(reading: Reading) -> tuple[list[Unit], list[fx.Node]]:
    """The units of a network in order, up to the head, and the nodes of its head, from where it pools or flattens on.

    A unit is a convolution with its norm and activation, or a block of parallel paths that join. A class of modules one
    of whose instances is such a block is a block class, and every instance of it is one unit, with a shortcut or
    without (the first block of a MobileNetV2 stage). A depthwise convolution sets no width and is one unit with the
    pointwise convolution behind it.

    Raises:
        ConversionError: if the network attends, or does what no graph can say.
    """
    _requires(reading)
    _refuse_attention(reading)
    _refuse_computed_kernels(reading)
    if reading.captured.refusals:
        raise ConversionError(reading.captured.refusals[0])
    pieces = _between_maps(join_norms(cut_pieces(_main_nodes(reading), reading.image)))
    head_at = _head_start(reading, pieces)
    _set_scales(reading, [node for piece in pieces[:head_at] for node in piece])
    body, states = split_cells(reading, pieces[:head_at])
    units = _Parser(reading, _merge_blocks(reading, body, states), states).units
    _ensures(units)
    return units, [node for piece in pieces[head_at:] for node in piece]


def _requires(reading: Reading) -> None:
    assert facts(reading.captured.output).carries, "TraceChannels has not run"


def _ensures(units: list[Unit]) -> None:
    for before, after in itertools.pairwise(units):
        assert after.inputs == before.state, f"unit at {after.nodes[0]} does not follow {before.output}"


def _main_nodes(reading: Reading) -> list[fx.Node]:
    """The nodes that carry image data to the class scores, the image left out, in order."""
    captured = reading.captured
    needed = {captured.output}
    for node in reversed(captured.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [n for n in captured.graph.nodes if facts(n).carries and n in needed and n is not reading.image]


def _between_maps(pieces: list[list[fx.Node]]) -> list[list[fx.Node]]:
    """The pieces between cut points at which there is a map, behind the last one as they are.

    A map that is made a list of pixels on the way, or lies on an axis with others, is no point to cut at.
    """
    last = max((i for i, piece in enumerate(pieces) if is_map(piece[-1])), default=-1)
    found: list[list[fx.Node]] = []
    opened = False
    for i, piece in enumerate(pieces):
        if opened:
            found[-1].extend(piece)
        else:
            found.append(list(piece))
        opened = i < last and not is_map(piece[-1])
    return found


def _refuse_attention(reading: Reading) -> None:
    for node in reading.captured.graph.nodes:
        name = str(getattr(node.target, "__name__", ""))
        if reading.kind(node) is Kind.ATTENTION or "attention" in name or _attends(reading, node):
            where = (module_path(node) or [(str(node.target), object)])[-1][0]
            raise ConversionError(
                f"the network attends at {where!r}: attention between the positions of a map has no top-down"
                " counterpart, only CNNs convert."
            )


def _refuse_computed_kernels(reading: Reading) -> None:
    for node in reading.captured.graph.nodes:
        is_function = node.op == "call_function" and reading.kind(node) is Kind.CONV
        if is_function and any(facts(n).carries for n in node.all_input_nodes[1:2]):
            raise ConversionError(
                f"the convolution at {place_of(node)!r}, {at_line(facts(node).place)}, has a kernel that is computed of"
                " the image: nothing says which of its numbers are filters; use a layer for it, such as CondConv2d of"
                " timm.layers."
            )


def _attends(reading: Reading, node: fx.Node) -> bool:
    """Whether a node multiplies a product of two maps by a third, as (q k) v or q (k v), with no layer in between."""
    if not _multiplies_maps(reading, node):
        return False
    stack, reached = list(node.all_input_nodes), set()
    while stack:
        before = stack.pop()
        row = reading.row(before)
        if before in reached or (row is not None and row.width is Width.FREE):
            continue
        if _multiplies_maps(reading, before):
            return True
        reached.add(before)
        stack.extend(n for n in before.all_input_nodes if facts(n).carries)
    return False


def _multiplies_maps(reading: Reading, node: fx.Node) -> bool:
    row, maps = reading.row(node), [n for n in node.all_input_nodes if facts(n).carries]
    return row is not None and row.kind is Kind.PRODUCT and len(maps) > 1


def _head_start(reading: Reading, pieces: list[list[fx.Node]]) -> int:
    """The first piece after which there is no map any more, or the global pooling before it, with what serves that."""
    last_map = max((i for i, piece in enumerate(pieces) if is_map(piece[-1])), default=-1)
    start = next((i for i in range(last_map + 1) if _pools_all(reading, pieces[i])), last_map + 1)
    kinds = [reading.kind(piece[-1]) if len(piece) == 1 else None for piece in pieces]
    weighted = (i for i in range(start, len(pieces)) if kinds[i] in {Kind.CONV, Kind.LINEAR, Kind.NORM})
    if start and kinds[start - 1] is Kind.POWER and Kind.POWER in kinds[start : next(weighted, None)]:
        start -= 1
        while start and kinds[start - 1] in {Kind.POWER, Kind.RANGE}:
            start -= 1
    return start


def _pools_all(reading: Reading, piece: list[fx.Node]) -> bool:
    """Whether a piece is a global pooling, or several side by side: no way through it without one, or with weights."""
    passed: set[fx.Node] = set()  # nodes that the map reaches in its size
    for node in piece:
        if reading.kind(node) is Kind.GLOBAL_POOL or pools_all(reading, node) is not None:
            continue
        inputs = [n for n in node.all_input_nodes if facts(n).carries]
        row, module = reading.row(node), reading.captured.module(node)
        if passed.intersection(inputs) or any(n not in piece for n in inputs):
            has_weights = module is not None and any(True for _ in module.parameters())
            if has_weights or (row is not None and row.width is Width.FREE):
                return False
            passed.add(node)
    return piece[-1] not in passed


def pools_all(reading: Reading, node: fx.Node) -> Callable[..., torch.Tensor] | None:
    """The global pooling that a pooling of a fixed size is, where it averages its whole map or takes its one maximum.

    A maximum that strides as well, as the last of a VGG for small images does, is a downsampling.
    """
    if reading.kind(node) is not Kind.POOL or facts(node).size != (1, 1) or not _covers_map(reading, node):
        return None
    pooling = _global_pooling(reading, node)
    return pooling if pooling is not F.adaptive_max_pool2d or reading.stride(node) == (1, 1) else None


def _global_pooling(reading: Reading, node: fx.Node) -> Callable[..., torch.Tensor] | None:
    """The pooling of torch that takes the average, or the maximum, of maps of any size as a pooling does of its own."""
    module = reading.captured.module(node)
    name = (type(module).__name__ if module is not None else str(getattr(node.target, "__name__", ""))).lower()
    return F.adaptive_avg_pool2d if "avg" in name else F.adaptive_max_pool2d if "max" in name else None


def _covers_map(reading: Reading, node: fx.Node) -> bool:
    """Whether a pooling sees all of a map of more than one pixel at once."""
    before = next(n for n in node.all_input_nodes if facts(n).carries)
    size, kernel = facts(before).size, pool_kernel(node, reading.captured.module(node))
    if size is None or size == (1, 1):
        return False
    return kernel is None or all(k >= n for k, n in zip(kernel, size, strict=True))


def _gate(reading: Reading, node: fx.Node) -> Gate | None:
    """What a pooling leaves of its map, if that meets a map again: of a gate, no downsampling."""
    before = next((n for n in node.all_input_nodes if is_map(n)), None)
    if reading.kind(node) is not Kind.POOL or before is None or not is_map(node):
        return None
    if not (_covers_map(reading, node) if facts(node).size == (1, 1) else _leaves_line(reading, before, node)):
        return None
    if not _meets_map(reading, node):  # it may have grown again, as before a head that is made for one size
        return None
    kernel = pool_kernel(node, reading.captured.module(node)) if reading.row(node) is not None else None
    kept = [n == made > 1 for n, made in zip(sides_of(before), sides_of(node), strict=True)]
    alone = all(k == 1 for k, is_kept in zip(kernel or (1, 1), kept, strict=True) if is_kept)
    height, width = (None if is_kept else 1 for is_kept in kept)
    return Gate(_global_pooling(reading, node) if alone else None, (height, width))


def _meets_map(reading: Reading, node: fx.Node) -> bool:
    """Whether what a pooling leaves of a map meets a map again, of which it is no part."""
    stack, reached = [node], {node}
    while stack:
        users = [user for user in stack.pop().users if user not in reached and facts(user).carries]
        reached.update(users)
        stack.extend(users)
    near = {n for user in reached - {node} for n in (user, *user.all_input_nodes)}
    large = {n for n in near if facts(n).size not in {None, (1, 1)} and not reading.is_strip(facts(n).size)}
    return not all(n in reached for n in large)


def _leaves_line(reading: Reading, before: fx.Node, node: fx.Node) -> bool:
    """Whether a pooling leaves one line of a map, of all its rows or columns."""
    if not reading.is_strip(facts(node).size) or facts(before).size == facts(node).size:
        return False
    kernel = pool_kernel(node, reading.captured.module(node)) if reading.row(node) is not None else None
    sides = zip(sides_of(before), sides_of(node), kernel or reading.stride(node), strict=True)
    return all(n == made or (made == 1 and n <= k) for n, made, k in sides)


def _set_scales(reading: Reading, nodes: list[fx.Node]) -> None:
    """Note on every node how much smaller than the image its map is, by the strides of the operator table."""
    facts(reading.image).scale = (1, 1)
    for node in nodes:
        inputs = [n for n in node.all_input_nodes if facts(n).in_unit]
        gate = _gate(reading, node)
        down, across = (1, 1) if gate is not None else reading.stride(node)
        like = [n for n in inputs if facts(n).size == facts(node).size and (down, across) == (1, 1)] or inputs
        height, width = facts(like[0]).scale
        facts(node).stride, facts(node).gate = (down, across), gate
        up, along = reading.growth(node)
        facts(node).scale = (max(1, height * down // up), max(1, width * across // along))


def _common_module(nodes: list[fx.Node]) -> tuple[str, type] | None:
    """The innermost module that all the nodes run in."""
    stacks = [module_path(node) for node in nodes]
    common = None
    for level in zip(*stacks, strict=False):
        if len({path for path, _ in level}) > 1:
            break
        common = level[0]
    return common


def _merge_blocks(
    reading: Reading, pieces: list[list[fx.Node]], states: Collection[fx.Node]
) -> list[tuple[list[fx.Node], bool]]:
    """Join the pieces that lie in one instance of a block class; the flag says whether a piece is a block."""
    joins = [len(piece) > 1 and joins_paths(reading, piece) for piece in pieces]
    homes = [_common_module(piece) for piece, joined in zip(pieces, joins, strict=True) if joined]
    containers = _containers(reading, pieces, joins, states)
    classes = {home[1] for home in homes if home and home[0] not in containers} - _GENERIC
    merged: list[tuple[list[fx.Node], bool]] = []
    last_home: str | None = None
    for piece, joined in zip(pieces, joins, strict=True):
        home = next((path for path, kind in _shared_modules(piece) if kind in classes and path not in containers), None)
        if home is not None and home == last_home:
            merged[-1][0].extend(piece)
        else:
            merged.append((list(piece), joined or home is not None))
        last_home = home
    return merged


def _containers(
    reading: Reading, pieces: list[list[fx.Node]], joins: list[bool], states: Collection[fx.Node]
) -> set[str]:
    """The modules that are no block: those that make the map smaller at several cut points, hold two cells, all that
    there is, or all blocks of the network, at several scales.
    """
    homes = [{path for path, _ in _shared_modules(piece)} for piece in pieces]
    read = [reading.image, *(piece[-1] for piece in pieces)]
    strides = Counter(
        path
        for before, piece, home in zip(read, pieces, homes, strict=False)
        if facts(piece[-1]).scale != facts(before).scale
        for path in home
    )
    cells = (pair for pair in itertools.pairwise(pieces) if pair[0][-1] in states)
    shared = ({path for path, _ in _shared_modules([*before, *after])} for before, after in cells)
    found = {path for path, count in strides.items() if count > 1}.union(*shared)
    if len(pieces) > 1:
        found |= set.intersection(*homes)
    blocks = [
        (home, facts(piece[-1]).scale) for home, piece, joined in zip(homes, pieces, joins, strict=True) if joined
    ]
    if len({scale for _, scale in blocks}) > 1:
        found |= set.intersection(*(home for home, _ in blocks))
    return found


def _shared_modules(piece: list[fx.Node]) -> list[tuple[str, type]]:
    """The modules that all nodes of a piece run in, outermost first."""
    shared = _common_module(piece)
    if shared is None:
        return []
    stack = module_path(piece[0])
    return stack[: [path for path, _ in stack].index(shared[0]) + 1]


class _Parser:
    """Groups pieces into units: blocks, convolutions with what precedes and follows them, poolings."""

    def __init__(
        self, reading: Reading, pieces: list[tuple[list[fx.Node], bool]], states: Mapping[fx.Node, State]
    ) -> None:
        self.reading = reading
        self.units: list[Unit] = []
        self._states = states
        self._previous: State = (reading.image,)
        self._pending: list[fx.Node] = []  # norm, activation or padding that waits for its convolution
        order = [node for piece, _ in pieces for node in piece]
        self._population = Counter(path for node in order for path, _ in module_path(node))
        self._activates_first = any(is_block and _activates_first(reading, nodes) for nodes, is_block in pieces)
        for nodes, is_block in pieces:
            self._read(nodes, is_block)
        self._flush()

    def _read(self, nodes: list[fx.Node], is_block: bool) -> None:
        kind = self.reading.kind(nodes[-1])
        current = self.units[-1] if self.units and not self._pending else None
        if is_block:
            if _shared_modules(self._pending) != _shared_modules(
                nodes
            ):  # where it is written with them they are its own
                self._flush()
            self._add([*self._take_pending(), *nodes], UnitKind.BLOCK)
        elif nodes[-1] in self._states:  # the stem of a chain of cells, which hands on its input too
            self._add([*self._take_pending(), *nodes], UnitKind.CONV)
        elif len(nodes) == 1 and kind is Kind.CONV:
            waits = current is not None and current.kind is UnitKind.CONV and self._is_depthwise(current.nodes)
            if current is not None and waits and not self._is_depthwise(nodes):
                self._extend(current, nodes)
            else:
                self._add([*self._take_pending(), *nodes], UnitKind.CONV)
        elif any(facts(node).pads_for for node in self._pending):  # up to the convolution that it pads for
            self._pending.extend(nodes)
        elif self._pools(nodes):
            self._flush()
            self._add(nodes, UnitKind.POOL)
        elif len(nodes) == 1 and kind is Kind.PAD and not facts(nodes[0].all_input_nodes[0]).stays:
            self._pending.extend(nodes)
        elif (current is not None and current.kind is UnitKind.CONV) or (
            current is not None and current.kind is UnitKind.BLOCK and self._closes_block(current, nodes, kind)
        ):
            self._extend(current, nodes)
        elif (len(nodes) == 1 and kind in {Kind.NORM, Kind.ACTIVATION}) or written_norm(nodes, 0) == tuple(nodes):
            self._pending.extend(nodes)
        else:
            self._flush()
            self._add(nodes, UnitKind.OTHER)

    def _pools(self, nodes: list[fx.Node]) -> bool:
        """Whether nodes without weights make the map smaller: a pooling, slices of every other pixel put together."""
        if facts(nodes[-1]).scale == facts(self._previous[0]).scale:
            return False
        rows = [self.reading.row(node) for node in nodes]
        modules = [self.reading.captured.module(node) for node in nodes]
        weights = any(True for module in modules if module is not None for _ in module.parameters())
        return not weights and not any(row is not None and row.width is Width.FREE for row in rows)

    def _closes_block(self, block: Unit, nodes: list[fx.Node], kind: Kind | None) -> bool:
        """Whether what is written in the module that joined the paths belongs to the block.

        An activation does, unless blocks begin with theirs; after a norm it would not. What changes the order of the
        channels that were joined does too.
        """
        homes = (module_path(block.output), _shared_modules(block.nodes))
        if block.path or module_path(nodes[0]) not in homes:
            return False
        return shuffles(nodes) or (kind is Kind.ACTIVATION and not self._activates_first)

    def _is_depthwise(self, nodes: list[fx.Node]) -> bool:
        modules = [self.reading.layer(n) for n in nodes if self.reading.kind(n) is Kind.CONV]
        return bool(modules) and all(module is not None and is_depthwise(module) for module in modules)

    def _take_pending(self) -> list[fx.Node]:
        taken, self._pending = self._pending, []
        return taken

    def _flush(self) -> None:
        if self._pending:
            self._add(self._take_pending(), UnitKind.OTHER)

    def _add(self, nodes: list[fx.Node], kind: UnitKind) -> None:
        unit = Unit(list(nodes), self._previous, kind)
        self.units.append(unit)
        self._close(unit)

    def _extend(self, unit: Unit, nodes: list[fx.Node]) -> None:
        unit.nodes.extend(nodes)
        self._close(unit)

    def _close(self, unit: Unit) -> None:
        self._previous = unit.state = self._states.get(unit.output, (unit.output,))
        after, before = facts(unit.output).scale, facts(unit.input).scale
        if after[0] % before[0] or after[1] % before[1]:
            refuse_decoder(self.reading, unit.nodes)
            raise ConversionError(
                f"the map grows from scale {before} to {after} at {place_of(unit.output)!r}, before the head: only CNNs"
                " that shrink convert."
            )
        unit.stride = after[0] // before[0], after[1] // before[1]
        homes = [m for m in _shared_modules(unit.nodes) if self._population[m[0]] == len(unit.nodes)]
        homes = [m for m in homes if m[1] is not nn.Sequential] or homes[-1:]
        named = homes and len(unit.nodes) > 1
        unit.path, unit.class_name = (homes[0][0], homes[0][1].__name__) if named else ("", "")


def shuffles(nodes: list[fx.Node]) -> bool:
    """Whether nodes without weights put the channels of a map in another order, by way of other axes."""
    plain = all(
        node.op != "call_module" and not any(n.op == "get_attr" for n in node.all_input_nodes) for node in nodes
    )
    return plain and any(facts(node).axis is None for node in nodes)


def _activates_first(reading: Reading, nodes: list[fx.Node]) -> bool:
    """Whether a block adds what comes in to what it makes of its activation: a pre-activation block."""
    read = {n for node in nodes for n in node.all_input_nodes if facts(n).carries}.difference(nodes)
    firsts = [node for node in nodes if not read.isdisjoint(node.all_input_nodes)]
    kinds = {reading.kind(node) for node in firsts}
    return kinds <= {Kind.ACTIVATION, Kind.NORM, Kind.JOIN} and Kind.ACTIVATION in kinds and Kind.JOIN in kinds


def refuse_decoder(reading: Reading, nodes: list[fx.Node]) -> None:
    """Refuse a network that makes its map larger again, where one does.

    Raises:
        ConversionError: naming the place.
    """
    grown = next((node for node in nodes if reading.growth(node) != (1, 1)), None)
    if grown is not None:
        before = next(n for n in grown.all_input_nodes if is_map(n))
        if facts(before).value.is_complex():
            raise ConversionError(
                f"the network computes with the frequencies of a map at {place_of(grown)!r}: what every position has a"
                " part in has no top-down counterpart, only CNNs convert."
            )
        sizes = ["x".join(map(str, sides_of(node))) for node in (before, grown)]
        raise ConversionError(
            f"the map grows again at {place_of(grown)!r}, from {sizes[0]} to {sizes[1]}: a network with a decoder has"
            " no top-down counterpart; hand over its encoder alone (task='segmentation' scores its pixels)."
        )
