"""What a node of a graph computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from td_compiler.graph.notes import is_opaque

__all__ = ["evaluate"]


def evaluate(
    node: fx.Node, root: nn.Module | Mapping[str, nn.Module | torch.Tensor], value_of: Callable[[fx.Node], Any]
) -> Any:
    """What a node computes, given the values of the nodes that it reads; its paths are those of `root`.

    `root` is a network, or its layers, and its tensors outside layers, by path.

    An opaque layer, one that needs data to run, is taken to keep the shape of its input.
    """
    args: Any = node.args
    kwargs: Any = {}
    if len(args) == 1 and isinstance(args[0], fx.Node) and not node.kwargs:
        args = (value_of(args[0]),)
    else:
        args, kwargs = map_aggregate((node.args, node.kwargs), lambda a: value_of(a) if isinstance(a, fx.Node) else a)
    if is_opaque(node):
        return args[0]
    with torch.no_grad():
        if node.op == "get_attr":
            if node.target == "training":
                return False
            if isinstance(root, Mapping):
                return root[str(node.target)]
            value: Any = root
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        if node.op == "call_module":
            module: Any = root[str(node.target)] if isinstance(root, Mapping) else root.get_submodule(str(node.target))
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "output":
            return args[0]
        return node.target(*args, **kwargs)  # type: ignore[operator]
