"""What a node of a graph computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from td_compiler.graph.notes import is_opaque

__all__ = ["evaluate"]


def evaluate(node: fx.Node, root: nn.Module, value_of: Callable[[fx.Node], Any]) -> Any:
    """What a node computes, given the values of the nodes that it reads; its paths are those of `root`.

    An opaque layer, one that needs data to run, is taken to keep the shape of its input.
    """
    args, kwargs = map_aggregate((node.args, node.kwargs), lambda a: value_of(a) if isinstance(a, fx.Node) else a)
    if is_opaque(node):
        return args[0]
    with torch.no_grad():
        if node.op == "get_attr":
            if node.target == "training":
                return False
            value: Any = root
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        if node.op == "call_module":
            return root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "output":
            return args[0]
        return node.target(*args, **kwargs)  # type: ignore[operator]
