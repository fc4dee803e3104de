"""Cut the bottom-up graph where two tensors are handed on: between cells that read the last two outputs (SPEC 2.13)."""

from __future__ import annotations

import itertools

from torch import fx

from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import Reading
from td_compiler.passes.nodes import module_path
from td_compiler.passes.trace_channels import is_map

__all__ = ["State", "joins_paths", "split_cells"]

State = tuple[fx.Node, ...]
"""What is handed on at a cut, newest first."""


def split_cells(reading: Reading, pieces: list[list[fx.Node]]) -> tuple[list[list[fx.Node]], dict[fx.Node, State]]:
    """Split pieces between single-tensor cut points into cells, where a piece is a chain of such.

    Returns:
        The pieces, split, and the states at the cuts put in, by the last node before each.
    """
    found: list[list[fx.Node]] = []
    states: dict[fx.Node, State] = {}
    entry = reading.image
    for piece in pieces:
        chain = _chain(reading, piece, entry)
        ends = [0, *(at + 1 for at in chain), len(piece)]
        found += [piece[start:end] for start, end in itertools.pairwise(ends)]
        states |= {piece[at]: state for at, state in chain.items()}
        entry = piece[-1]
    return found, states


def _chain(reading: Reading, piece: list[fx.Node], entry: fx.Node) -> dict[int, State]:
    """The cuts of the longest chain of cells that a piece is, by place; none if it is no such chain.

    A cell joins paths with convolutions and reads all of the state before it, that is one tensor or two; what it hands
    on is its output, and one tensor of that state at most: a tensor made within the cell is its own business. A stem
    may precede the first cell, which then reads the stem's output and its input. Cells that stay at one scale are left
    in one piece, which is one stage's in any case, as is a piece of two cells of which one alone makes the map smaller:
    that is what a block with a long and a short way looks like. Nor is it a chain where its input is handed on at every
    cut: that is a block which sums up branches of it.
    """
    scales = facts(entry).scale, facts(piece[-1]).scale
    if scales[0] == scales[1]:
        return {}
    cuts = {-1: (entry,), **_cuts(piece, entry), len(piece) - 1: (piece[-1],)}
    modules = _modules(piece)
    cuts = _outside_cells(reading, piece, cuts, modules)
    ends = _cell_ends(reading, piece, modules) & cuts.keys()
    cells: dict[int, int] = {-1: 0}  # cut -> how many cells the longest chain up to there has
    before: dict[int, int] = {}
    for start, state in cuts.items():
        for end in (end for end in cuts if end > start) if start in cells else ():
            part = piece[start + 1 : end + 1]
            if not _follows(part, state, cuts[end]):
                continue
            if end in ends and joins_paths(reading, part):
                count = cells[start] + 1
            elif start == -1 and any(reading.kind(node) is Kind.CONV for node in part):
                count = 0
            else:
                continue
            if count > cells.get(end, -1):
                cells[end], before[end] = count, start
    chain: list[int] = []
    at = before.get(len(piece) - 1, -1)
    while at >= 0:
        chain.insert(0, at)
        at = before[at]
    if len(chain) > 1 and all(entry in cuts[at] for at in chain):
        return {}
    between = [at for at in chain if cells[at] > 0]  # cells, not a stem and a cell
    splits_strides = any(facts(piece[at]).scale not in scales for at in between)
    return {at: cuts[at] for at in chain} if len(between) > 1 or splits_strides else {}


def _cuts(piece: list[fx.Node], entry: fx.Node) -> dict[int, State]:
    """The places inside a piece after which one or two tensors are still to be read, the newest of them just made."""
    place = {node: i for i, node in enumerate(piece)}
    last = {node: max((place[user] for user in node.users if user in place), default=-1) for node in [entry, *piece]}
    cuts: dict[int, State] = {}
    live = [entry]
    for i, node in enumerate(piece[:-1]):
        live = [other for other in [node, *live] if last[other] > i]
        if len(live) <= 2 and live[0] is node and is_map(node):
            cuts[i] = tuple(live)
    return cuts


def _modules(piece: list[fx.Node]) -> dict[str, tuple[int, int]]:
    """The modules that run within a piece, in one go: path -> the places of their first and last node."""
    places: dict[str, list[int]] = {}
    for i, node in enumerate(piece):
        for path, _ in module_path(node):
            places.setdefault(path, []).append(i)
    ranges = {path: (at[0], at[-1]) for path, at in places.items() if at[-1] - at[0] == len(at) - 1}
    return {path: span for path, span in ranges.items() if span != (0, len(piece) - 1)}


def _outside_cells(
    reading: Reading, piece: list[fx.Node], cuts: dict[int, State], modules: dict[str, tuple[int, int]]
) -> dict[int, State]:
    """The cuts that do not lie within a module that is a cell and holds no smaller one."""
    spans = {
        (first, last)
        for first, last in modules.values()
        if first - 1 in cuts and last in cuts
        and _follows(piece[first : last + 1], cuts[first - 1], cuts[last])
        and joins_paths(reading, piece[first : last + 1])
    }  # fmt: skip
    cells = [one for one in spans if not any(one[0] <= a <= b <= one[1] for a, b in spans - {one})]
    return {at: state for at, state in cuts.items() if not any(first <= at < last for first, last in cells)}


def _cell_ends(reading: Reading, piece: list[fx.Node], modules: dict[str, tuple[int, int]]) -> set[int]:
    """The places where a cell may end: where paths have just joined, or with a module in which they do."""
    kinds = [reading.kind(node) for node in piece]
    joins = {i for i, kind in enumerate(kinds) if kind is Kind.JOIN}
    ends = {last for first, last in modules.values() if not joins.isdisjoint(range(first, last + 1))}
    for i in sorted(joins):
        ends.add(i)
        while i + 1 < len(piece) and kinds[i + 1] in {Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT, Kind.IDENTITY}:
            i += 1
            ends.add(i)
    return ends


def _follows(nodes: list[fx.Node], before: State, after: State) -> bool:
    """Whether some nodes read all of the state before them and hand on their output and at most one tensor of that."""
    if not set(after[1:]) <= set(before):
        return False
    inside = set(nodes)
    return set(before) <= {n for node in nodes for n in node.all_input_nodes if n not in inside}


def joins_paths(reading: Reading, piece: list[fx.Node]) -> bool:
    """Whether a piece joins paths with convolutions: a gate by a vector is no join, `x * sigmoid(x)` has no paths."""
    if not any(reading.kind(node) is Kind.CONV for node in piece):
        return False
    for node in piece:
        row = reading.row(node)
        if row is not None and row.kind is Kind.CONV and sum(map(is_map, node.all_input_nodes)) > 1:
            return True  # it reads where to look in one map, which another path has made
        if row is not None and row.kind is Kind.JOIN:
            maps = [n for n in node.all_input_nodes if is_map(n) and facts(n).size == facts(node).size]
            if len(maps) > 1 or row.width is Width.SUM:
                return True
    return False
