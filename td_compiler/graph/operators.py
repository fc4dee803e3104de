"""What every operator does to scale and width: the one table that the passes read.

A row says of an operator: its *kind* (what role it can play in a unit), its *width relation* (how the number of
channels flows through it), its *stride* (how much smaller it makes the map), and, for layers with parameters, which
axes of which parameters carry its input and output widths. A new operator is a new row in `LAYERS` (modules),
`FUNCTIONS` (functions) or `METHODS` (tensor methods).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler.capture.meta import META
from td_compiler.graph.notes import Pair, computed, facts
from td_compiler.layers.folding import ConcatConv2d, FoldedConv2d
from td_compiler.layers.upsample import TransposedUpsample, upsample_aligned, upsample_bilinear, upsample_nearest

__all__ = ["FUNCTIONS", "LAYERS", "LIBRARY_LAYERS", "METHODS", "Kind", "Operator", "Width", "layer_row", "lookup"]


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
    PRODUCT = auto()  # of matrices
    SOFTMAX = auto()  # of scores, or of weights: no activation for new layers to have as well
    ALONG_CHANNELS = auto()
    POWER = auto()  # a power or root, an exponential or logarithm, as a generalised mean has around its average
    RANGE = auto()  # keeps values where a power is defined


class Width(Enum):
    """How the channels of an operator's output follow from those of its inputs."""

    EQUAL = auto()  # as many as every input has
    FREE = auto()  # the layer's own choice
    SUM = auto()  # the inputs' channels one after the other
    FLAT = auto()  # channels times height times width
    NONE = auto()  # the output has no channels (a size, a number)
    UNKNOWN = auto()  # no rule: a parameter among the inputs would say


def pair(value: Any) -> Pair:
    """An int or a sequence of one or two as (height, width); a size computed by a node is the number that it had."""
    items = value if isinstance(value, (tuple, list)) else (value,)
    numbers = [facts(item).value if isinstance(item, fx.Node) else item for item in items]
    return numbers[0], numbers[-1]


def _unit_stride(node: fx.Node, module: nn.Module | None) -> Pair:
    return 1, 1


def _module_stride(node: fx.Node, module: nn.Module | None) -> Pair:
    stride = getattr(module, "stride", None)
    return pair(stride if stride is not None else module.kernel_size)  # type: ignore[union-attr]


def pool_kernel(node: fx.Node, module: nn.Module | None) -> Pair | None:
    """The (height, width) that a pooling sees; None where neither its layer nor its arguments say."""
    kernel = getattr(module, "kernel_size", None) if module is not None else _argument(node, 1, "kernel_size")
    return pair(kernel) if isinstance(kernel, (int, tuple, list, fx.Node)) else None


def pool_extent(node: fx.Node, module: nn.Module | None) -> tuple[Pair, Pair]:
    """(height, width) from the first to the last pixel that a pooling sees, and what it pads on each side."""
    kernel = pool_kernel(node, module)
    assert kernel is not None, f"{node} has no kernel size"
    if module is not None:
        padding, dilation = getattr(module, "padding", 0), getattr(module, "dilation", 1)
    else:
        padding, dilation = _argument(node, 3, "padding") or 0, _argument(node, 4, "dilation") or 1
        dilation = 1 if isinstance(dilation, bool) else dilation  # the ceil_mode of an average
    (down, across), (height, width) = pair(dilation), kernel
    return (down * (height - 1), across * (width - 1)), pair(padding)


def _argument(node: fx.Node, at: int, name: str) -> Any:
    """An argument by name or place, with the numbers that were computed for it; None where one is not known."""
    given = node.kwargs.get(name, node.args[at] if len(node.args) > at else None)
    known = fx.node.map_arg(given, computed)
    return None if isinstance(known, (tuple, list)) and None in known else known


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _pool_function_stride(node: fx.Node, module: nn.Module | None) -> Pair:
    stride: Any = _argument(node, 2, "stride") or _argument(node, 1, "kernel_size")
    return pair(stride) if isinstance(stride, (int, tuple, list, fx.Node)) else (1, 1)


def _conv_function_stride(node: fx.Node, module: nn.Module | None) -> Pair:
    stride = _argument(node, 3, "stride")
    return pair(stride) if isinstance(stride, (int, tuple, list)) else (1, 1)


def _accept(node: fx.Node, module: nn.Module | None) -> str:
    return ""


def _refuse_extent(node: fx.Node, module: nn.Module | None) -> str:
    """A convolution over channels and pixels at once: no rule says what becomes of the pixels."""
    settings = (getattr(module, name) for name in ("kernel_size", "stride"))
    if any(max(setting[1:]) > 1 for setting in settings):
        return "mixes channels and pixels: write what it does to the pixels as a 2D convolution"
    return ""


def _refuse_fixed_size(node: fx.Node, module: nn.Module | None) -> str:
    """A layer norm over more than the channels is for maps of one size, which change."""
    shape: Any = getattr(module, "normalized_shape", None) if module is not None else _argument(node, 1, "")
    if module is None and any(isinstance(n, fx.Node) for n in (*node.args[1:2], *node.kwargs.values())):
        return ""  # over the map that it reads, whatever its size
    if not isinstance(shape, (tuple, list)) or len(shape) < 2 or math.prod(shape[1:]) == 1:
        return ""
    return (
        f"normalises maps of one size alone (normalized_shape={tuple(shape)}), and maps have another size in the"
        " top-down network: normalise over the channels alone, by nn.GroupNorm(1, channels) for instance"
    )


def padding_of(node: fx.Node, module: nn.Module | None) -> tuple[str, float]:
    """How a padding pads: the `padding_mode` of a convolution that does likewise, and the value that it pads with."""
    row = lookup(node, module)
    if row is not None and row.mode:
        return row.mode, 0.0
    mode = _argument(node, 2, "mode") if module is None else "constant"
    value = _argument(node, 3, "value") if module is None else getattr(module, "value", 0.0)
    return {None: "zeros", "constant": "zeros"}.get(mode, mode), float(value or 0.0)


def convolution(node: fx.Node) -> nn.Conv2d | None:
    """A layer like a call of `F.conv2d`, without weights; None where the weight's shape is not known."""
    weight, bias = (node.kwargs.get(name, node.args[at] if len(node.args) > at else None) for name, at in _WEIGHTS)
    value = facts(weight).value if isinstance(weight, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dim() != 4:
        return None
    given: dict[str, Any] = {name: _argument(node, at, name) for name, at in _SETTINGS}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    groups, (outputs, inputs, *kernel) = int(settings.get("groups", 1)), value.shape
    shaped: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    size, has_bias = (kernel[0], kernel[1]), bias is not None
    return nn.Conv2d(inputs * groups, outputs, size, bias=has_bias, device=META, dtype=value.dtype, **shaped)


_WEIGHTS = (("weight", 1), ("bias", 2))
_SETTINGS = (("stride", 3), ("padding", 4), ("dilation", 5), ("groups", 6))


def _filter_size(layer: nn.Module) -> float:
    """From the settings where they say it: to read a weight that is computed may change what it is computed of."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.weight[0].numel()  # type: ignore[index]


def _experts_filter_size(layer: nn.Module) -> float:
    return layer.weight[0].numel() / int(layer.out_channels)  # type: ignore[index, arg-type, operator]


def _folded_products(layer: nn.Module) -> float:
    """Those of the map so far, by the transposed kernel, and those of the entry, in a merge."""
    assert isinstance(layer, FoldedConv2d)
    grown = math.prod((k + f - 1) / f for k, f in zip(layer.kernel_size, layer.factor, strict=True))
    plain = math.prod(layer.kernel_size)
    read = layer.in_channels // layer.groups
    return read / 2 * (grown + plain) if isinstance(layer, ConcatConv2d) else read * grown


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Attributes:
        kind: the role in a unit.
        width: how the channels flow.
        stride: (node, module) -> (height, width) factor by which the map shrinks.
        axes: parameter or buffer name -> the widths along its leading axes: "out", "in", "in/groups" or "filters" (all
            filters in one row); under any other name an axis keeps its length.
        arguments: name of a function's parameter -> (its position, the widths along its leading axes, as in `axes`).
        sizes: attribute name of the module -> "out", "in" or "filters" (their shape): numbers that follow the widths.
        padding: attributes that must have these values for the layer to pad by its `padding` and nothing else.
        border: of a pooling, the mode of `F.pad` that goes on beyond the border of its map without a change of what it
            sees there.
        mode: of a padding, the `padding_mode` of a convolution that pads likewise; "" where its arguments say.
        refuse: (node, module) -> why a network with this has no top-down counterpart; "" where it has one.
        products: layer with a weight -> how many products make one number of its output, on average.
        instead: node -> the row that holds for this call, None for this one.
    """

    kind: Kind
    width: Width = Width.EQUAL
    stride: Callable[[fx.Node, nn.Module | None], Pair] = _unit_stride
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    arguments: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)
    padding: Mapping[str, Any] = field(default_factory=dict)
    border: str = "replicate"
    mode: str = ""
    refuse: Callable[[fx.Node, nn.Module | None], str] = _accept
    products: Callable[[nn.Module], float] = _filter_size
    instead: Callable[[fx.Node], Operator | None] | None = None


def _at(**positions: int) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Arguments of a function that have one number per channel."""
    return {name: (at, ("in",)) for name, at in positions.items()}


_PER_CHANNEL = {"weight": ("in",), "bias": ("in",)}
_CONV = Operator(
    Kind.CONV,
    Width.FREE,
    _module_stride,
    axes={"weight": ("out", "in/groups"), "bias": ("out",)},
    sizes={"in_channels": "in", "out_channels": "out"},
)
# Where it runs along the channels they stay as many, and its stride is none of the map's.
_ALONG_CHANNELS = replace(_CONV, kind=Kind.ALONG_CHANNELS, stride=_unit_stride)
_FOLDED_CONV = replace(_CONV, products=_folded_products)
_BATCH_NORM = Operator(
    Kind.NORM,
    axes={**_PER_CHANNEL, "running_mean": ("in",), "running_var": ("in",)},
    sizes={"num_features": "in"},
)
_ACTIVATION = Operator(Kind.ACTIVATION)
_SOFTMAX = Operator(Kind.SOFTMAX)
_DROPOUT = Operator(Kind.DROPOUT)
_POOL = Operator(Kind.POOL, stride=_module_stride)
_GLOBAL_POOL = Operator(Kind.GLOBAL_POOL)
_JOIN = Operator(Kind.JOIN)
_CONCAT = Operator(Kind.JOIN, Width.SUM)
_FLATTEN = Operator(Kind.FLATTEN, Width.FLAT)
_SIZE = Operator(Kind.SIZE, Width.NONE)
_UPSAMPLE = Operator(Kind.UPSAMPLE)
_ATTENTION = Operator(Kind.ATTENTION)
_PRODUCT = Operator(Kind.PRODUCT, Width.UNKNOWN)
_POWER = Operator(Kind.POWER)
_RANGE = Operator(Kind.RANGE)
_CLAMP = replace(_RANGE, instead=lambda node: _ACTIVATION if _is_zero(_argument(node, 1, "min")) else None)  # ReLU

LAYERS: dict[type[nn.Module], Operator] = {
    nn.Conv2d: _CONV,
    FoldedConv2d: _FOLDED_CONV,
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
    nn.LayerNorm: Operator(Kind.NORM, axes=_PER_CHANNEL, sizes={"normalized_shape": "in"}, refuse=_refuse_fixed_size),
    nn.LocalResponseNorm: Operator(Kind.NORM),
    **dict.fromkeys(
        (
            *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.RReLU),
            *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
            *(nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
        ),
        _ACTIVATION,
    ),
    **dict.fromkeys((nn.LogSoftmax, nn.Softmax), _SOFTMAX),
    nn.PReLU: Operator(Kind.ACTIVATION, axes={"weight": ("in",)}, sizes={"num_parameters": "in"}),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), _DROPOUT),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d), _POOL),
    nn.LPPool2d: replace(_POOL, border="constant"),  # a sum, to which zeros add nothing
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _GLOBAL_POOL),
    **dict.fromkeys((nn.ZeroPad2d, nn.ConstantPad2d), Operator(Kind.PAD)),
    nn.ReflectionPad2d: Operator(Kind.PAD, mode="reflect"),
    nn.ReplicationPad2d: Operator(Kind.PAD, mode="replicate"),
    nn.CircularPad2d: Operator(Kind.PAD, mode="circular"),
    nn.Flatten: _FLATTEN,
    nn.Identity: Operator(Kind.IDENTITY),
    nn.Conv1d: _ALONG_CHANNELS,
    nn.Conv3d: replace(_ALONG_CHANNELS, refuse=_refuse_extent),
    TransposedUpsample: _UPSAMPLE,
    nn.MultiheadAttention: _ATTENTION,
}

# Layers of libraries that need not be installed, by the qualified name of their class.
LIBRARY_LAYERS: dict[str, Operator] = {
    "timm.layers.cond_conv2d.CondConv2d": Operator(  # mixes its filters for every image from those of some experts
        Kind.CONV,
        Width.FREE,
        _module_stride,
        axes={"weight": ("experts", "filters"), "bias": ("experts", "out")},
        sizes={"weight_shape": "filters", "bias_shape": "out", "in_channels": "in", "out_channels": "out"},
        padding={"dynamic_padding": False},
        products=_experts_filter_size,
    ),
    "torchvision.ops.deform_conv.DeformConv2d": _CONV,  # where it reads is a map beside its map
}

FUNCTIONS: dict[Callable[..., Any], Operator] = {
    **dict.fromkeys(
        (
            *(F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish),
            *(F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh),
        ),
        _ACTIVATION,
    ),
    **dict.fromkeys((F.log_softmax, F.softmax, torch.softmax, torch.log_softmax), _SOFTMAX),
    **dict.fromkeys((F.dropout, F.dropout2d, F.alpha_dropout), _DROPOUT),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d, torch.max_pool2d), Operator(Kind.POOL, stride=_pool_function_stride)),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_max_pool2d), _GLOBAL_POOL),
    **dict.fromkeys((torch.mean, torch.amax), _GLOBAL_POOL),
    F.pad: Operator(Kind.PAD),
    F.conv2d: Operator(
        Kind.CONV,
        Width.FREE,
        _conv_function_stride,
        arguments={"weight": (1, ("out", "in/groups")), "bias": (2, ("out",))},
    ),
    F.linear: Operator(Kind.LINEAR, Width.FREE, arguments={"weight": (1, ("out", "in")), "bias": (2, ("out",))}),
    F.batch_norm: Operator(Kind.NORM, arguments=_at(running_mean=1, running_var=2, weight=3, bias=4)),
    F.instance_norm: Operator(Kind.NORM, arguments=_at(running_mean=1, running_var=2, weight=3, bias=4)),
    F.layer_norm: Operator(Kind.NORM, arguments=_at(weight=2, bias=3), refuse=_refuse_fixed_size),
    F.group_norm: Operator(Kind.NORM, arguments=_at(weight=2, bias=3)),
    F.prelu: Operator(Kind.ACTIVATION, arguments=_at(weight=1)),
    **dict.fromkeys(
        (
            *(operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv),
            *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum),
        ),
        _JOIN,
    ),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _CONCAT),
    torch.index_select: _JOIN,
    torch.flatten: _FLATTEN,
    **dict.fromkeys((F.scaled_dot_product_attention, F.multi_head_attention_forward), _ATTENTION),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm, torch.baddbmm, torch.einsum), _PRODUCT),
    **dict.fromkeys((upsample_nearest, upsample_bilinear, upsample_aligned), _UPSAMPLE),
    **dict.fromkeys((operator.pow, torch.pow, torch.square, torch.sqrt, torch.exp, torch.log), _POWER),
    **dict.fromkeys((torch.abs, operator.abs), _RANGE),
    **dict.fromkeys((torch.clamp, torch.clip, torch.clamp_min), _CLAMP),
    **dict.fromkeys((getattr, operator.getitem, operator.floordiv, operator.eq), _SIZE),
}

METHODS: dict[str, Operator] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "tanh"), _ACTIVATION),
    **dict.fromkeys(("softmax", "log_softmax"), _SOFTMAX),
    **dict.fromkeys(("mean", "amax"), _GLOBAL_POOL),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_", "div", "index_select"), _JOIN),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), _FLATTEN),
    **dict.fromkeys(("contiguous", "clone", "float", "to"), Operator(Kind.IDENTITY)),
    **dict.fromkeys(("matmul", "bmm", "baddbmm"), _PRODUCT),
    **dict.fromkeys(("pow", "square", "sqrt", "exp", "log", "pow_", "square_", "sqrt_", "exp_", "log_"), _POWER),
    **dict.fromkeys(("abs", "abs_"), _RANGE),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_", "clip_", "clamp_min_"), _CLAMP),
    **dict.fromkeys(("size", "dim"), _SIZE),
}


def layer_row(module: nn.Module | None) -> Operator | None:
    """The row of a layer's class or of the nearest of its bases that has one: a user's `Conv2d` has torch's row."""
    if (row := LAYERS.get(type(module))) is not None:  # type: ignore[arg-type]
        return row
    for base in type(module).__mro__:
        row = LAYERS.get(base) or LIBRARY_LAYERS.get(f"{base.__module__}.{base.__qualname__}")
        if row is not None:
            return row
    return None


def lookup(node: fx.Node, module: nn.Module | None) -> Operator | None:
    """The row of a graph node, or None where the table has none; `module` is the layer that a `call_module` calls."""
    if node.op == "call_module":
        return layer_row(module)
    row = None
    if node.op == "call_function":
        row = FUNCTIONS.get(node.target)  # type: ignore[arg-type]
    elif node.op == "call_method":
        row = METHODS.get(str(node.target))
    other = row.instead(node) if row is not None and row.instead is not None else None
    return other or row
