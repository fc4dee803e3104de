"""Activations that are written out, such as `x * torch.tanh(F.softplus(x))`: several operations that are one layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind
from td_compiler.graph.states import Reading

__all__ = ["written_activation"]

_POINTWISE = {Kind.ACTIVATION, Kind.RANGE, Kind.POWER, Kind.JOIN, Kind.IDENTITY}


def written_activation(reading: Reading, nodes: Sequence[fx.Node], at: int) -> tuple[fx.Node, ...]:
    """The nodes of the activation that begins at a place among bottom-up nodes; none if none of several nodes does.

    That are pointwise operations of one map and no other, among them an activation or a bound, that part and come
    together again; and what the same module without parameters does to the result.
    """
    read = _maps(nodes[at])
    if len(read) != 1 or len(read[0].users) < 2:
        return ()
    source = read[0]
    inside: list[fx.Node] = []
    for node in nodes[at:]:
        if not _is_pointwise(reading, node, source) or not {source, *inside}.issuperset(_maps(node)):
            break
        inside.append(node)
    for end in range(2, len(inside) + 1):
        found = inside[:end]
        known = set(found)
        if all(known.issuperset(node.users) for node in (source, *found[:-1])):
            if not any(reading.kind(node) in {Kind.ACTIVATION, Kind.RANGE} for node in found):
                return ()
            while (
                end < len(inside) and set(inside[end - 1].users) == {inside[end]} and _same_home(reading, inside, end)
            ):
                end += 1
            return tuple(inside[:end])
    return ()


def _maps(node: fx.Node) -> list[fx.Node]:
    return [each for each in node.all_input_nodes if facts(each).carries]


def _is_pointwise(reading: Reading, node: fx.Node, source: fx.Node) -> bool:
    made, given = facts(node).value, facts(source).value
    alike = isinstance(made, torch.Tensor) and isinstance(given, torch.Tensor) and made.shape == given.shape
    return alike and reading.kind(node) in _POINTWISE


def _same_home(reading: Reading, nodes: Sequence[fx.Node], at: int) -> bool:
    """Whether a node runs in the module of the one before it, which has no parameters."""
    homes = [tuple(path for path, _ in facts(node).modules)[-1:] for node in nodes[at - 1 : at + 1]]
    module = reading.captured.modules.get(homes[0][0]) if homes[0] else None
    return homes[0] == homes[1] and module is not None and not any(True for _ in module.parameters())
