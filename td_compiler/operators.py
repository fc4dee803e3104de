"""What every operator does to scale and width: the one table that the passes read.

A row says of an operator: its *kind* (what role it can play in a unit), its *width relation* (how the number of
channels flows through it), its *stride* (how much smaller it makes the map), and, for layers with parameters, which
axes of which parameters carry its input and output widths. A new operator is a new row in `LAYERS` (modules),
`FUNCTIONS` (functions) or `METHODS` (tensor methods).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler.upsample import TransposedUpsample, upsample_bilinear, upsample_nearest

__all__ = ["FUNCTIONS", "LAYERS", "METHODS", "Kind", "Operator", "Width", "lookup"]


class Kind(Enum):
    """The role that an operator plays in a unit."""

    CONV = auto()
    LINEAR = auto()
    NORM = auto()
    ACTIVATION = auto()
    DROPOUT = auto()
    POOL = auto()
    GLOBAL_POOL = auto()
    PAD = auto()
    JOIN = auto()
    FLATTEN = auto()
    UPSAMPLE = auto()
    IDENTITY = auto()
    SIZE = auto()
    ATTENTION = auto()
    ALONG_CHANNELS = auto()


class Width(Enum):
    """How the channels of an operator's output follow from those of its inputs."""

    EQUAL = auto()  # as many as every input has
    FREE = auto()  # the layer's own choice
    SUM = auto()  # the inputs' channels one after the other
    FLAT = auto()  # channels times height times width
    NONE = auto()  # the output has no channels (a size, a number)


Pair = tuple[int, int]


def pair(value: int | tuple[int, ...] | list[int]) -> Pair:
    """An int or a sequence of one or two as (height, width)."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _unit_stride(node: fx.Node, module: nn.Module | None) -> Pair:
    return 1, 1


def _module_stride(node: fx.Node, module: nn.Module | None) -> Pair:
    stride = getattr(module, "stride", None)
    return pair(stride if stride is not None else module.kernel_size)  # type: ignore[union-attr, arg-type]


def _pool_function_stride(node: fx.Node, module: nn.Module | None) -> Pair:
    kernel = node.kwargs.get("kernel_size", node.args[1] if len(node.args) > 1 else 1)
    stride = node.kwargs.get("stride", node.args[2] if len(node.args) > 2 else None) or kernel
    return pair(stride) if isinstance(stride, (int, tuple, list)) else (1, 1)


def _conv_function_stride(node: fx.Node, module: nn.Module | None) -> Pair:
    stride = node.kwargs.get("stride", node.args[3] if len(node.args) > 3 else 1)
    return pair(stride)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Attributes:
        kind: the role in a unit.
        width: how the channels flow.
        stride: (node, module) -> (height, width) factor by which the map shrinks.
        axes: parameter or buffer name -> the widths along its leading axes: "out", "in" or "in/groups".
        sizes: attribute name of the module -> "out" or "in": numbers that follow the widths.
    """

    kind: Kind
    width: Width = Width.EQUAL
    stride: Callable[[fx.Node, nn.Module | None], Pair] = _unit_stride
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)


_PER_CHANNEL = {"weight": ("in",), "bias": ("in",)}
_CONV = Operator(
    Kind.CONV,
    Width.FREE,
    _module_stride,
    axes={"weight": ("out", "in/groups"), "bias": ("out",)},
    sizes={"in_channels": "in", "out_channels": "out"},
)
_BATCH_NORM = Operator(
    Kind.NORM,
    axes={**_PER_CHANNEL, "running_mean": ("in",), "running_var": ("in",)},
    sizes={"num_features": "in"},
)
_ACTIVATION = Operator(Kind.ACTIVATION)
_DROPOUT = Operator(Kind.DROPOUT)
_POOL = Operator(Kind.POOL, stride=_module_stride)
_GLOBAL_POOL = Operator(Kind.GLOBAL_POOL)
_JOIN = Operator(Kind.JOIN)
_CONCAT = Operator(Kind.JOIN, Width.SUM)
_FLATTEN = Operator(Kind.FLATTEN, Width.FLAT)
_SIZE = Operator(Kind.SIZE, Width.NONE)
_UPSAMPLE = Operator(Kind.UPSAMPLE)
_ATTENTION = Operator(Kind.ATTENTION)

LAYERS: dict[type[nn.Module], Operator] = {
    nn.Conv2d: _CONV,
    nn.Linear: Operator(
        Kind.LINEAR,
        Width.FREE,
        axes={"weight": ("out", "in"), "bias": ("out",)},
        sizes={"in_features": "in", "out_features": "out"},
    ),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.SyncBatchNorm: _BATCH_NORM,
    nn.InstanceNorm2d: _BATCH_NORM,
    nn.GroupNorm: Operator(Kind.NORM, axes=_PER_CHANNEL, sizes={"num_channels": "in"}),
    nn.LayerNorm: Operator(Kind.NORM, axes=_PER_CHANNEL, sizes={"normalized_shape": "in"}),
    nn.LocalResponseNorm: Operator(Kind.NORM),
    **dict.fromkeys(
        (
            *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.RReLU),
            *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
            *(nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.LogSoftmax, nn.Softmax),
        ),
        _ACTIVATION,
    ),
    nn.PReLU: Operator(Kind.ACTIVATION, axes={"weight": ("in",)}, sizes={"num_parameters": "in"}),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), _DROPOUT),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d), _POOL),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _GLOBAL_POOL),
    **dict.fromkeys((nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d), Operator(Kind.PAD)),
    nn.Flatten: _FLATTEN,
    nn.Identity: Operator(Kind.IDENTITY),
    nn.Conv1d: Operator(Kind.ALONG_CHANNELS),  # as efficient channel attention has it: over the channels of a vector
    TransposedUpsample: _UPSAMPLE,
    nn.MultiheadAttention: _ATTENTION,
}

FUNCTIONS: dict[Callable[..., Any], Operator] = {
    **dict.fromkeys(
        (
            *(F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish),
            *(F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh),
            *(F.log_softmax, F.softmax, torch.softmax, torch.log_softmax),
        ),
        _ACTIVATION,
    ),
    **dict.fromkeys((F.dropout, F.dropout2d, F.alpha_dropout), _DROPOUT),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d, torch.max_pool2d), Operator(Kind.POOL, stride=_pool_function_stride)),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_max_pool2d), _GLOBAL_POOL),
    **dict.fromkeys((torch.mean, torch.amax), _GLOBAL_POOL),
    F.pad: Operator(Kind.PAD),
    F.conv2d: Operator(Kind.CONV, Width.FREE, _conv_function_stride),
    **dict.fromkeys(
        (
            *(operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv),
            *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum),
        ),
        _JOIN,
    ),
    **dict.fromkeys((torch.cat, torch.concat), _CONCAT),
    torch.flatten: _FLATTEN,
    **dict.fromkeys((F.scaled_dot_product_attention, F.multi_head_attention_forward), _ATTENTION),
    **dict.fromkeys((upsample_nearest, upsample_bilinear), _UPSAMPLE),
    **dict.fromkeys((getattr, operator.getitem, operator.floordiv, operator.eq), _SIZE),
}

METHODS: dict[str, Operator] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "tanh", "softmax", "log_softmax"), _ACTIVATION),
    **dict.fromkeys(("mean", "amax"), _GLOBAL_POOL),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_", "div"), _JOIN),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), _FLATTEN),
    **dict.fromkeys(("contiguous", "clone", "float", "to"), Operator(Kind.IDENTITY)),
    **dict.fromkeys(("size", "dim"), _SIZE),
}


def lookup(node: fx.Node, module: nn.Module | None) -> Operator | None:
    """The row of a graph node, or None where the table has none; `module` is the layer that a `call_module` calls.

    A layer's class is looked up along its bases, so a user's subclass of `Conv2d` has Conv2d's row.
    """
    if node.op == "call_module":
        return next((LAYERS[base] for base in type(module).__mro__ if base in LAYERS), None)
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)  # type: ignore[arg-type]
    if node.op == "call_method":
        return METHODS.get(str(node.target))
    return None
