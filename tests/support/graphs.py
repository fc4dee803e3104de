"""Random bottom-up CNNs, valid by construction: operator by operator, with the shape known at every step.

In the manner of NNSmith (Liu et al., ASPLOS 2023): only choices that fit the shape so far are drawn. A drawn network is
a tree of frozen dataclasses whose `repr` is code that makes it again; `build` turns it into a module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

from tests.support import graph_layers as layers
from tests.support.graph_layers import ACTIVATIONS, NORMS

__all__ = ["Conv", "Dense", "Drop", "Head", "Inception", "Inverted", "Network", "NormAct", "Pool", "Residual",
           "Separable", "build", "networks", "scales"]  # fmt: skip

Draw = Callable[[st.SearchStrategy[Any]], Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Conv:
    """A convolution with norm and activation, in this order or, with `pre`, in front of it; `padding` -1 is half."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int | str = -1
    groups: int = 1
    dilation: int = 1
    bias: bool = True
    norm: str = "none"
    act: str = "none"
    pre: bool = False


@dataclass(frozen=True)
class NormAct:
    """A norm and an activation on their own, as at the end of pre-activation networks."""

    norm: str = "batch"
    act: str = "relu"


@dataclass(frozen=True)
class Pool:
    """A pooling."""

    kind: str = "max"
    kernel: int = 2
    stride: int = 2
    padding: int = 0
    ceil: bool = False
    functional: bool = False


@dataclass(frozen=True)
class Drop:
    """Dropout."""

    kind: str = "dropout"
    p: float = 0.5


@dataclass(frozen=True)
class Residual:
    """A residual block: two convolutions or, with `inner`, a bottleneck of that width; 1x1 projection where needed."""

    width: int
    stride: int = 1
    kernel: int = 3
    inner: int = 0
    groups: int = 1
    pre: bool = False
    squeeze: int = 0
    drop: float = 0.0
    pooled_shortcut: bool = False
    norm: str = "none"
    act: str = "relu"


@dataclass(frozen=True)
class Dense:
    """Layers that each append `growth` channels to what they read."""

    growth: int
    count: int = 1
    norm: str = "none"
    act: str = "relu"
    stride: ClassVar[int] = 1


@dataclass(frozen=True)
class Inception:
    """Parallel branches (1x1; 1x1, 3x3; 1x1, 5x5; pooling, 1x1), concatenated; strided ones drop the 1x1 branch."""

    branches: tuple[int, ...]
    stride: int = 1
    norm: str = "none"
    act: str = "relu"


@dataclass(frozen=True)
class Separable:
    """A depthwise convolution, then a pointwise one."""

    width: int
    kernel: int = 3
    stride: int = 1
    norm: str = "none"
    act: str = "relu"


@dataclass(frozen=True)
class Inverted:
    """1x1 expansion, depthwise convolution, squeeze-excitation, linear 1x1; with a shortcut where shapes allow it."""

    width: int
    kernel: int = 3
    stride: int = 1
    expand: int = 1
    squeeze: int = 0
    norm: str = "none"
    act: str = "relu"


Layer = Conv | NormAct | Pool | Drop | Residual | Dense | Inception | Separable | Inverted


@dataclass(frozen=True)
class Head:
    """What makes class scores of the last map: `average`, `mean`, `max`, `flatten`, `adaptive`, `conv` or `mlp`."""

    kind: str = "average"
    classes: int = 3
    hidden: int = 0
    drop: float = 0.0
    side: int = 2


@dataclass(frozen=True)
class Network:
    """A network for images (channels, height, width)."""

    size: tuple[int, int, int]
    layers: tuple[Layer, ...]
    head: Head = Head()
    sequential: bool = True


def build(spec: Network) -> nn.Module:
    """The module that a spec describes."""
    return layers.Net(spec)


def scales(spec: Network) -> tuple[int, ...]:
    """The scales of the network's maps, finest first, from the strides that were drawn."""
    strides = [layer.stride for layer in spec.layers if not isinstance(layer, (NormAct, Drop))]
    return tuple(sorted(set(itertools.accumulate(strides, int.__mul__, initial=1))))


@dataclass
class _Sketch:
    """A network under way: the layers so far and the shape (C, H, W) of their output."""

    draw: Draw
    size: tuple[int, int, int]
    norm: str
    act: str
    layers: list[Layer]

    def __post_init__(self) -> None:
        self.shape = self.size

    @property
    def side(self) -> int:
        """The shorter side of the map."""
        return min(self.shape[1:])

    def add(self, layer: Layer) -> None:
        """Append a layer, run it without values to learn the shape."""
        with torch.device("meta"):
            module = layers.make(layer, self.shape[0])
            self.shape = tuple(module.eval()(torch.empty(2, *self.shape)).shape[1:])
        self.layers.append(layer)

    def pick(self, *values: T) -> T:
        """One of the values; the first is the simplest."""
        chosen: T = self.draw(st.sampled_from(values))
        return chosen

    def maybe(self, layer: Any, **changes: Any) -> Any:
        """The layer, now and then with some of the changes."""
        return replace(layer, **changes) if self.draw(st.booleans()) else layer


def _plain(s: _Sketch, width: int, stride: int, **fixed: Any) -> None:
    kernel = s.pick(*(k for k in (3, 1, 5, 2, 4, 7, 6) if k % 2 or k <= s.side))
    paddings: tuple[int | str, ...] = (-1, "valid", "same", 0, 1)
    padding = s.pick(*paddings)
    padding = -1 if padding == "same" and stride > 1 else padding
    if padding != -1 and (kernel > s.side - 2 or (padding == 1 and kernel < 2)):
        padding = -1
    groups = s.pick(*(g for g in (1, 2, 3, 4) if s.shape[0] % g == 0 and width % g == 0))
    dilation = 2 if padding == -1 and kernel % 2 and kernel > 1 and s.draw(st.integers(0, 9)) == 9 else 1
    conv = Conv(width, kernel, stride, padding, groups, dilation, norm=s.norm, act=s.act, **fixed)
    s.add(s.maybe(conv, bias=False) if s.norm != "none" else conv)


def _residual(s: _Sketch, width: int, stride: int, **fixed: Any) -> None:
    block = Residual(width, stride, norm=s.norm, act=s.act, **fixed)
    block = s.maybe(block, kernel=s.pick(5, 1, 7))
    block = s.maybe(block, squeeze=s.pick(1, 2, 4))
    block = s.maybe(block, drop=0.25)
    block = s.maybe(block, pooled_shortcut=stride > 1)
    s.add(block)


def _bottleneck(s: _Sketch, width: int, stride: int, **fixed: Any) -> None:
    inner = s.pick(2, 4, 6, 8)
    groups = s.pick(*(g for g in (1, 2, 4, inner) if inner % g == 0))
    _residual(s, width, stride, inner=inner, groups=groups, **fixed)


def _pre(s: _Sketch, width: int, stride: int) -> None:
    s.pick(_residual, _bottleneck)(s, width, stride, pre=True)


def _dense(s: _Sketch, width: int, stride: int) -> None:
    if stride > 1:
        s.add(Conv(width, 1, norm=s.norm, act=s.act, pre=True, bias=False))
        s.add(Pool("avg", stride, stride))
    s.add(Dense(s.pick(2, 3, 4), s.pick(1, 2, 3), s.norm, s.act))


def _inception(s: _Sketch, width: int, stride: int) -> None:
    count = 2 if stride > 1 else 4
    s.add(Inception(tuple(s.pick(2, 1, 3, 4) for _ in range(count)), stride, s.norm, s.act))


def _separable(s: _Sketch, width: int, stride: int) -> None:
    s.add(Separable(width, s.pick(3, 5), stride, s.norm, s.act))


def _inverted(s: _Sketch, width: int, stride: int) -> None:
    s.add(Inverted(width, s.pick(3, 5), stride, s.pick(2, 1, 3), s.pick(0, 2, 4), s.norm, s.act))


_BLOCKS = (_plain, _residual, _bottleneck, _pre, _dense, _inception, _separable, _inverted)


def _mixed(s: _Sketch, width: int, stride: int) -> None:
    s.pick(*_BLOCKS)(s, width, stride)


def _stem(s: _Sketch, width: int) -> None:
    kind = s.pick("none", "conv", "bare", "strided", "pooled", "patchify", "two")
    if kind == "conv":
        s.add(Conv(width, 3, norm=s.norm, act=s.act))
    elif kind == "bare":
        s.add(Conv(width, 3))
    elif kind == "strided":
        s.add(Conv(width, s.pick(3, 7), 2, norm=s.norm, act=s.act, bias=False))
    elif kind == "pooled":
        s.add(Conv(width, s.pick(3, 7), s.pick(1, 2), norm=s.norm, act=s.act))
        s.add(Pool("max", 3, 2, 1))
    elif kind == "patchify":
        patch = s.pick(2, 3, 4)
        s.add(Conv(width, patch, patch, "valid", norm=s.norm))
    elif kind == "two":
        s.add(Conv(max(1, width // 2), 3, 2, norm=s.norm, act=s.act))
        s.add(Conv(width, 3, norm=s.norm, act=s.act))


def _pool(s: _Sketch) -> None:
    stride = s.pick(2, 3) if s.side >= 6 else 2
    kernel = s.pick(*(k for k in (stride, 3, 2) if k <= s.side))
    pool = Pool(s.pick("max", "avg"), kernel, stride, functional=s.draw(st.booleans()))
    s.add(s.maybe(s.maybe(pool, padding=kernel // 2), ceil=True))


def _head(s: _Sketch) -> Head:
    kinds = ["average", "mean", "max", "conv", "mlp", "adaptive"]
    if math.prod(s.shape) <= 1200:
        kinds.append("flatten")
    kind = s.pick(*kinds)
    return Head(kind, s.pick(3, 2, 10), hidden=8 if kind in ("mlp", "flatten") and s.draw(st.booleans()) else 0,
                drop=s.pick(0.0, 0.3), side=s.pick(2, 1, 3, 7))  # fmt: skip


@st.composite
def networks(draw: Draw) -> Network:
    """Networks with at least one downsampling: plain, residual, dense, inception-like, separable, inverted, mixed."""
    block = draw(st.sampled_from((*_BLOCKS, _mixed, _mixed)))
    side = st.integers(8, 30)
    size = (draw(st.sampled_from((3, 1, 2, 4, 12))), draw(side), draw(side))
    norm, act = draw(st.sampled_from(NORMS)), draw(st.sampled_from(ACTIVATIONS))
    if norm == "none" and act == "relu":  # two in place in a row cannot be trained
        act = "F.relu"
    s = _Sketch(draw, size, norm, act, [])
    width = st.sampled_from((4, 8, 6, 12, 16, 3, 1))
    _stem(s, draw(width))
    stem = len(s.layers)
    for stage in range(draw(st.integers(2, 4))):
        stride = 1
        if stage and s.side >= 4:
            how = s.pick("stride", "pool")
            stride = s.pick(2, 2, 3) if how == "stride" and s.side >= 6 else 2 if how == "stride" else 1
            if how == "pool":
                _pool(s)
            if s.draw(st.integers(0, 3)) == 3:
                s.add(Drop(s.pick("dropout", "dropout2d", "functional"), 0.25))
        filters = draw(width)
        for i in range(draw(st.integers(1, 2))):
            block(s, filters, 1 if i else stride)
    body = itertools.dropwhile(lambda layer: layer.stride == 1, (x for x in s.layers[stem:] if hasattr(x, "stride")))
    if not any(layer.stride == 1 for layer in body):  # what only the stem makes smaller has nothing to reverse
        assume(s.side >= 4)
        block(s, draw(width), 1)
        _pool(s)
        block(s, draw(width), 1)
    if any(getattr(layer, "pre", False) for layer in s.layers):
        s.add(NormAct(s.norm, s.act))
    return Network(size, tuple(s.layers), _head(s), draw(st.booleans()))
