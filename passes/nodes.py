"""What a node of a graph reads: its arguments, parameters, channels; what its layer is; what users call its place."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from td_compiler.graph.operators import Kind
from td_compiler.graph.states import Conversion

__all__ = [
    "arguments",
    "channel_slice",
    "is_depthwise",
    "is_parameter",
    "is_spatial",
    "parameter_axis",
    "place_of",
    "root_parameter",
    "tensors",
]


def arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among a node's arguments, in order, each as often as it stands there."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(n) or n)  # type: ignore[func-returns-value]
    return found


def is_parameter(node: fx.Node) -> bool:
    return node.op == "get_attr" and isinstance(node.meta["value"], torch.Tensor)


def root_parameter(node: fx.Node) -> fx.Node | None:
    """The parameter that a node is a mere view of, as `self.weight.view(1, -1, 1, 1)` is."""
    while node.op == "call_method" and "width" not in node.meta.get("source", node).meta:
        if not isinstance(node.meta.get("source", node).meta.get("value"), torch.Tensor):
            return None
        node = node.args[0]  # type: ignore[assignment]
    return node if node.op == "get_attr" else None


def parameter_axis(node: fx.Node, user: fx.Node) -> int | None:
    """Which axis of a parameter (a top-down `get_attr` node) meets the channels of what its user computes."""
    value, reader = node.meta["source"].meta["value"], user.meta.get("source")
    if not isinstance(value, torch.Tensor) or reader is None or reader.meta.get("axis") is None:
        return None
    axis = reader.meta["axis"] - reader.meta["value"].dim() + value.dim() if value.dim() > 1 else 0
    return axis if 0 <= axis < value.dim() and value.shape[axis] == reader.meta["width"] else None


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one filter per input channel, so that it sets no width of its own."""
    groups, inputs = getattr(module, "groups", 1), getattr(module, "in_channels", 0)
    return bool(groups == inputs > 1)


def is_spatial(conversion: Conversion, node: fx.Node) -> bool:
    """Whether a bottom-up node is a convolution that sees more than one pixel."""
    module = conversion.captured.module(node)
    return conversion.kind(node) is Kind.CONV and max(getattr(module, "kernel_size", (1,))) > 1


def channel_slice(node: fx.Node) -> slice | None:
    """The channels that a top-down node takes of the map that it reads, as `x[:, :16]` does; None for other nodes."""
    axis = node.meta["source"].meta.get("axis") if "source" in node.meta else None
    index: Any = node.args[1] if node.target is operator.getitem else None
    if axis is None or not isinstance(index, tuple) or Ellipsis in index or len(index) <= axis:
        return None
    return index[axis] if isinstance(index[axis], slice) else None


def place_of(node: fx.Node) -> str:
    """A bottom-up node as the user knows it: its module's path, else its name in the graph."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return stack[-1] if stack else node.name


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a value: itself, or those of a tuple that a split returns."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [v for v in value if isinstance(v, torch.Tensor)] if isinstance(value, (tuple, list)) else []
