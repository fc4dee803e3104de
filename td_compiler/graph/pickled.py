"""Graphs in pickles: of any length, and what pickle does not find by itself by its name."""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from td_compiler.graph.notes import Plan, is_top_down, noted, plan

__all__ = ["from_pickle", "to_pickle"]


@dataclass(frozen=True)
class _Named:
    """In a pickle the place of what pickle does not find: functions made inside another, such as `F.max_pool2d`, and
    memory formats, of which the protocol that `torch.save` uses knows nothing."""

    module: str
    name: str

    @classmethod
    def of(cls, item: object) -> object:
        """What stands for an object; the object itself where it pickles as it is, or has no name."""
        if isinstance(item, torch.memory_format):
            return cls("torch", str(item).removeprefix("torch."))
        if not isinstance(item, types.FunctionType) or "<locals>" not in item.__qualname__:
            return item
        module, name = item.__module__, item.__name__
        return cls(module, name) if getattr(sys.modules.get(module), name, None) is item else item

    @property
    def meant(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)

    def __call__(self) -> None:
        """Torch asks of what a node calls that it can be called."""


@dataclass(frozen=True)
class _At:
    """In a pickle the place of a node among the arguments of another: where it stands in the list."""

    index: int


def to_pickle(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """A graph as a list of its nodes: pickle walks a graph from node to node, and breaks down where it is long.

    Of what is known of a node, what a finished network keeps is kept.
    """
    places = {node: _At(i) for i, node in enumerate(graph.nodes)}

    def named(item: Any) -> Any:
        return places[item] if isinstance(item, fx.Node) else _Named.of(item)

    return [
        (
            node.op,
            _Named.of(node.target),
            map_aggregate(tuple(node.args), named),
            map_aggregate(dict(node.kwargs), named),
            node.name,
            _shown(node),
        )
        for node in graph.nodes
    ]


def from_pickle(nodes: list[tuple[Any, ...]]) -> fx.Graph:
    """The graph that `to_pickle` listed."""
    graph = fx.Graph()
    made: list[fx.Node] = []

    def meant(item: Any) -> Any:
        return made[item.index] if isinstance(item, _At) else item.meant if isinstance(item, _Named) else item

    for op, target, args, kwargs, name, note in nodes:
        args, kwargs = map_aggregate(args, meant), map_aggregate(kwargs, meant)
        made.append(graph.create_node(op, meant(target), args, kwargs, name))
        if note is not None:
            noted(made[-1], note)
    return graph


def _shown(node: fx.Node) -> Plan | None:
    """What a finished network keeps of a node's plan; None of a node of another graph."""
    if is_top_down(node):
        known = plan(node)
        return Plan(known.unit, known.class_name, growth=known.growth, homes=known.homes)
    return None
