"""Graphs in pickles: what pickle does not find by itself is named, in `torch.save`'s protocol too."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

__all__ = ["from_pickle", "to_pickle", "with_targets"]


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


def to_pickle(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph that pickles."""
    named = with_targets(graph, lambda node: _Named.of(node.target))
    for node in named.nodes:
        node.args, node.kwargs = map_aggregate(node.args, _Named.of), map_aggregate(node.kwargs, _Named.of)
    return named


def from_pickle(graph: fx.Graph) -> None:
    """Put back, in place, what `to_pickle` named."""

    def meant(item: Any) -> Any:
        return item.meant if isinstance(item, _Named) else item

    for node in graph.nodes:
        node.target = meant(node.target)
        node.args, node.kwargs = map_aggregate(node.args, meant), map_aggregate(node.kwargs, meant)


def with_targets(graph: fx.Graph, target_of: Callable[[fx.Node], Any]) -> fx.Graph:
    """A copy of a graph with other targets; a graph keeps, and pickles, those that its nodes ever had."""
    copy = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), copies.__getitem__)
        copies[node] = copy.create_node(node.op, target_of(node), args, kwargs, node.name, node.type)
        copies[node].meta = dict(node.meta)
    return copy
