"""Norms that are written out, as a layer norm over channels often is: several operations that are one layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import fx

from td_compiler.graph.moves import is_reduction, reduces
from td_compiler.graph.notes import facts
from td_compiler.graph.walks import ancestors

__all__ = ["join_norms", "written_norm"]


def written_norm(nodes: Sequence[fx.Node], at: int) -> tuple[fx.Node, ...]:
    """The nodes of the norm written out that begins at a place among bottom-up nodes; none if none does.

    That is the work of a module without layers of its own, which takes a statistic over the channels or the batch,
    scales by parameters of its own and hands on a map of the shape that it reads.
    """
    first = nodes[at]
    read = [n for n in first.all_input_nodes if facts(n).carries]
    home = next(reversed([path for path, _ in facts(first).modules]), "")
    if not home or first.op == "call_module" or len(read) != 1 or not isinstance(facts(first).value, torch.Tensor):
        return ()
    inside = list(itertools.takewhile(lambda n: home in _homes(n), nodes[at:]))
    known = {*read, *inside}
    others = [n for node in inside for n in node.all_input_nodes if n not in known]
    if any(n.op == "call_module" for n in inside) or any(facts(n).carries for n in others):
        return ()
    shapes = [tuple(getattr(facts(n).value, "shape", ())) for n in (*read, inside[-1])]
    behind = {n for other in others for n in (other, *ancestors(other))}
    has_parameters = any(n.op == "get_attr" and str(n.target).startswith(f"{home}.") for n in behind)
    alike = shapes[0] == shapes[1] and has_parameters and any(_normalises(n, known) for n in inside)
    return tuple(inside) if alike else ()


def _homes(node: fx.Node) -> set[str]:
    return {path for path, _ in facts(node).modules}


def _normalises(node: fx.Node, known: set[fx.Node]) -> bool:
    """Whether a node takes a statistic over the channels of a map, or over the batch."""
    source = node.all_input_nodes[0] if node.all_input_nodes else node
    values = [facts(n).value for n in (source, node)]
    if source not in known or not is_reduction(node) or not all(isinstance(v, torch.Tensor) for v in values):
        return False
    axes = {0, facts(source).axis or 0}
    return any(reduces(node, axis, values[0].shape, values[1].shape) for axis in axes)


def join_norms(pieces: list[list[fx.Node]]) -> list[list[fx.Node]]:
    """Make one piece of those that are a norm written out together."""
    nodes, joined = [node for piece in pieces for node in piece], []
    ends = set(itertools.accumulate(len(piece) for piece in pieces))
    at = taken = 0  # nodes before the piece, nodes in `joined`
    for piece in pieces:
        if at < taken:  # part of the norm before it
            at += len(piece)
            continue
        norm = written_norm(nodes, at)
        joined.append(list(norm) if norm and at + len(norm) in ends else piece)
        taken = at + len(joined[-1])
        at += len(piece)
    return joined
