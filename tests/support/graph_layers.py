"""The modules behind the specs of `tests.support.graphs`, written the ways in which people write networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from tests.support import graphs

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F.relu": F.relu,
    "x.relu": lambda x: x.relu(),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "x*sigmoid": lambda x: x * torch.sigmoid(x),
}
_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(inplace=True),
    "silu": lambda width: nn.SiLU(),
    "gelu": lambda width: nn.GELU(),
    "leaky": lambda width: nn.LeakyReLU(0.2),
    "hardswish": lambda width: nn.Hardswish(),
    "prelu": lambda width: nn.PReLU(),
    "prelus": lambda width: nn.PReLU(width),
}
ACTIVATIONS = ("relu", "F.relu", *_MODULES, *_FUNCTIONS)
NORMS = ("batch", "none", "group", "batch-eps")


class Function(nn.Module):
    """An activation called as a function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _FUNCTIONS[self.name](x)


def activation(name: str, width: int) -> nn.Module:
    if name == "none":
        return nn.Identity()
    return Function(name) if name in _FUNCTIONS else _MODULES[name](width)


def norm(name: str, width: int) -> nn.Module:
    if name == "group":
        return nn.GroupNorm(math.gcd(width, 4), width)
    if name == "none":
        return nn.Identity()
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01) if name == "batch-eps" else nn.BatchNorm2d(width)


def unit(
    inputs: int, width: int, kernel: int, names: tuple[str, str], stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, norm and activation of the same size at stride 1."""
    conv = nn.Conv2d(inputs, width, kernel, stride, kernel // 2, groups=groups, bias=names[0] == "none")
    return nn.Sequential(conv, norm(names[0], width), activation(names[1], width))


class Conv(nn.Module):
    def __init__(self, spec: graphs.Conv, inputs: int) -> None:
        super().__init__()
        padding = spec.dilation * (spec.kernel - 1) // 2 if spec.padding == -1 else spec.padding
        extra: dict[str, Any] = {"dilation": spec.dilation, "groups": spec.groups, "bias": spec.bias}
        self.conv = nn.Conv2d(inputs, spec.width, spec.kernel, spec.stride, padding, **extra)
        self.pre = spec.pre
        self.norm = norm(spec.norm, inputs if spec.pre else spec.width)
        self.act = activation(spec.act, inputs if spec.pre else spec.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre:
            return self.conv(self.act(self.norm(x)))
        return self.act(self.norm(self.conv(x)))


class Pool(nn.Module):
    """A pooling called as a function."""

    def __init__(self, spec: graphs.Pool) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.spec
        pool = F.max_pool2d if s.kind == "max" else F.avg_pool2d
        return pool(x, s.kernel, s.stride, padding=s.padding, ceil_mode=s.ceil)


class Drop(nn.Module):
    """Dropout called as a function."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.p, self.training)


class Squeeze(nn.Module):
    """Squeeze-excitation."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        inner = max(1, width // ratio)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(self.pool(x)))))


class Residual(nn.Module):
    def __init__(self, spec: graphs.Residual, inputs: int) -> None:
        super().__init__()
        self.pre = spec.pre
        shapes = [(spec.inner, 1, 1, 1), (spec.inner, spec.kernel, spec.stride, spec.groups), (spec.width, 1, 1, 1)]
        if not spec.inner:
            shapes = [(spec.width, spec.kernel, spec.stride, 1), (spec.width, spec.kernel, 1, 1)]
        self.convs, self.norms, self.acts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        last = inputs
        for width, kernel, stride, groups in shapes:
            bias = spec.norm == "none"
            self.convs.append(nn.Conv2d(last, width, kernel, stride, kernel // 2, groups=groups, bias=bias))
            self.norms.append(norm(spec.norm, last if spec.pre else width))
            self.acts.append(activation(spec.act, last if spec.pre else width))
            last = width
        self.squeeze = Squeeze(last, spec.squeeze) if spec.squeeze else None
        self.drop = nn.Dropout(spec.drop) if spec.drop else None
        self.shortcut: nn.Module | None = None
        if inputs != spec.width or spec.stride > 1:
            stride = 1 if spec.pooled_shortcut else spec.stride
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, spec.width, 1, stride, bias=False))
            if spec.pooled_shortcut:
                pool = nn.AvgPool2d(spec.stride, spec.stride, ceil_mode=True, count_include_pad=False)
                self.shortcut.insert(0, pool)
            if not spec.pre:
                self.shortcut.append(norm(spec.norm, spec.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i, (conv, norm_, act) in enumerate(zip(self.convs, self.norms, self.acts, strict=True)):
            if self.pre:
                y = conv(act(norm_(y)))
            else:
                y = norm_(conv(y))
                y = act(y) if i + 1 < len(self.convs) else y
        if self.squeeze is not None:
            y = self.squeeze(y)
        if self.drop is not None:
            y = self.drop(y)
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return y if self.pre else self.acts[-1](y)


class Dense(nn.Module):
    def __init__(self, spec: graphs.Dense, inputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(spec.count):
            width = inputs + i * spec.growth
            conv = nn.Conv2d(width, spec.growth, 3, padding=1, bias=False)
            self.layers.append(nn.Sequential(norm(spec.norm, width), activation(spec.act, width), conv))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Inception(nn.Module):
    def __init__(self, spec: graphs.Inception, inputs: int) -> None:
        super().__init__()
        names, stride = (spec.norm, spec.act), spec.stride
        if stride > 1:
            first, second = spec.branches
            self.branches = nn.ModuleList(
                [
                    unit(inputs, first, 3, names, stride),
                    nn.Sequential(unit(inputs, second, 1, names), unit(second, second, 3, names, stride)),
                    nn.MaxPool2d(3, stride, 1),
                ]
            )
            return
        one, three, five, pooled = spec.branches
        self.branches = nn.ModuleList(
            [
                unit(inputs, one, 1, names),
                nn.Sequential(unit(inputs, 2, 1, names), unit(2, three, 3, names)),
                nn.Sequential(unit(inputs, 3, 1, names), unit(3, five, 5, names)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(inputs, pooled, 1, names)),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Inverted(nn.Module):
    def __init__(self, spec: graphs.Inverted, inputs: int) -> None:
        super().__init__()
        names, inner = (spec.norm, spec.act), inputs * spec.expand
        self.expand = unit(inputs, inner, 1, names) if spec.expand > 1 else nn.Identity()
        self.depthwise = unit(inner, inner, spec.kernel, names, spec.stride, groups=inner)
        self.squeeze = Squeeze(inner, spec.squeeze) if spec.squeeze else nn.Identity()
        self.project = unit(inner, spec.width, 1, (spec.norm, "none"))
        self.shortcut = spec.stride == 1 and inputs == spec.width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.shortcut else y


def make(spec: graphs.Layer, inputs: int) -> nn.Module:
    """The module of one layer that reads `inputs` channels."""
    from tests.support import graphs

    if isinstance(spec, graphs.NormAct):
        return nn.Sequential(norm(spec.norm, inputs), activation(spec.act, inputs))
    if isinstance(spec, graphs.Pool):
        if spec.functional:
            return Pool(spec)
        kind = nn.MaxPool2d if spec.kind == "max" else nn.AvgPool2d
        return kind(spec.kernel, spec.stride, padding=spec.padding, ceil_mode=spec.ceil)
    if isinstance(spec, graphs.Drop):
        kinds = {"dropout": nn.Dropout, "dropout2d": nn.Dropout2d, "functional": Drop}
        return kinds[spec.kind](spec.p)
    if isinstance(spec, graphs.Separable):
        names = (spec.norm, spec.act)
        depthwise = unit(inputs, inputs, spec.kernel, names, spec.stride, groups=inputs)
        return nn.Sequential(depthwise, unit(inputs, spec.width, 1, names))
    makers: dict[type, Callable[..., nn.Module]] = {
        graphs.Conv: Conv,
        graphs.Residual: Residual,
        graphs.Dense: Dense,
        graphs.Inception: Inception,
        graphs.Inverted: Inverted,
    }
    return makers[type(spec)](spec, inputs)


class Net(nn.Module):
    """A whole network: layers in one `Sequential` or as attributes, then the head."""

    def __init__(self, spec: graphs.Network) -> None:
        super().__init__()
        self.spec = spec
        shape = spec.size
        made = []
        for layer in spec.layers:
            with torch.device("meta"):
                probe = make(layer, shape[0]).eval()
                after: Any = tuple(probe(torch.empty(2, *shape, device="meta")).shape[1:])
            made.append(make(layer, shape[0]))
            shape = after
        if spec.sequential:
            self.features = nn.Sequential(*made)
        for i, module in enumerate([] if spec.sequential else made):
            self.add_module(f"layer{i}", module)
        self.head = _head(spec.head, shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.spec.sequential:
            x = self.features(x)
        else:
            for i in range(len(self.spec.layers)):
                x = getattr(self, f"layer{i}")(x)
        if self.spec.head.kind == "mean":
            x = x.mean((2, 3))
        elif self.spec.head.kind == "average":
            x = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        return self.head(x)


def _head(head: graphs.Head, shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = shape
    drop = [nn.Dropout(head.drop)] if head.drop else []
    if head.kind == "conv":
        return nn.Sequential(*drop, nn.Conv2d(channels, head.classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before: list[nn.Module] = []
    features = channels
    if head.kind == "max":
        before = [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    elif head.kind == "mlp":
        before = [nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()]
    elif head.kind == "adaptive":
        before, features = [nn.AdaptiveAvgPool2d((head.side, head.side)), nn.Flatten()], channels * head.side**2
    elif head.kind == "flatten":
        before, features = [nn.Flatten()], channels * height * width
    hidden: list[nn.Module] = []
    if head.hidden:
        hidden, features = [nn.Linear(features, head.hidden), nn.ReLU(), *drop], head.hidden
    return nn.Sequential(*before, *hidden, *([] if hidden else drop), nn.Linear(features, head.classes))
