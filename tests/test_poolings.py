"""Poolings: those that summarise a map stay what they are, those without a stride keep its size (SPEC 1.3, 2.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler import ConversionError, reverse, verify
from tests.faults.common import close, fill, parameters
from tests.test_idioms import SIZE, Net, Residual, conv_bn, gated

SIDES = {8: 32, 16: 16, 32: 8}  # width of a stage -> side of its maps


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gate(nn.Module):
    """A map weighted by what a pooling leaves of it."""

    def __init__(self, width: int, pool: nn.Module) -> None:
        super().__init__()
        self.pool, self.weigh = pool, nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(self.pool(x)).sigmoid()


def average(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def maximum(x: Tensor) -> Tensor:
    return x.amax((2, 3), keepdim=True)


def rows(x: Tensor) -> Tensor:
    return x.mean(3, keepdim=True)


def columns(x: Tensor) -> Tensor:
    return x.amax(2, keepdim=True)


# A pooling for a gate, for maps of a side, and what it computes of any map.
SUMMARIES: dict[str, tuple[Callable[[int], nn.Module], Callable[[Tensor], Tensor]]] = {
    "average, size of the map": (lambda side: Function(lambda x: F.avg_pool2d(x, x.shape[2:])), average),
    "maximum, size of the map": (lambda side: Function(lambda x: F.max_pool2d(x, x.size()[2:])), maximum),
    "the same without stride": (lambda side: Function(lambda x: F.avg_pool2d(x, x.shape[2:], 1)), average),
    "by a number": (lambda side: nn.AvgPool2d(side), average),
    "average by a number, without stride": (lambda side: nn.AvgPool2d(side, 1), average),
    "maximum by a number, without stride": (lambda side: nn.MaxPool2d(side, 1), maximum),
    "rows": (lambda side: Function(lambda x: F.avg_pool2d(x, (1, x.shape[3]))), rows),
    "rows by a number": (lambda side: nn.AvgPool2d((1, side)), rows),
    "rows by a number, without stride": (lambda side: nn.AvgPool2d((1, side), 1), rows),
    "columns by a number": (lambda side: nn.MaxPool2d((side, 1)), columns),
    "columns by a number, without stride": (lambda side: nn.MaxPool2d((side, 1), 1), columns),
    "one axis after the other": (
        lambda side: nn.Sequential(nn.AvgPool2d((1, side), 1), nn.AvgPool2d((side, 1))),
        average,
    ),
    "columns, and their neighbours": (
        lambda side: nn.Sequential(nn.MaxPool2d((side, 1), 1), nn.MaxPool2d((1, 3), 1, (0, 1))),
        lambda x: F.max_pool2d(columns(x), (1, 3), 1, (0, 1)),
    ),
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_gates(name: str) -> None:
    """The network is the one whose gate is a mean or maximum over the axes, at other scales and sizes too."""
    pool, summary = SUMMARIES[name]
    for filters in ("mirror", "reversed"):
        torch.manual_seed(0)
        made = reverse(gated(lambda width: Gate(width, pool(SIDES[width])))(), input_size=SIZE, filters=filters)
        right = reverse(gated(lambda width: Gate(width, Function(summary)))(), input_size=SIZE, filters=filters)
        assert parameters(made) == parameters(right)
        for height, width in ((32, 32), (40, 28)):
            images = torch.rand(2, 3, height, width)
            with torch.no_grad():
                close(fill(made).eval()(images), fill(right).eval()(images), f"{name}, {filters}")


@pytest.mark.parametrize("pool", [lambda side: nn.LPPool2d(2, side), lambda side: nn.LPPool2d(2, side, 1)])
def test_gate_that_torch_has_for_one_size(pool: Callable[[int], nn.Module]) -> None:
    """Kept as it is; where its map has another size in the top-down network, refused by name."""

    def root(x: Tensor) -> Tensor:
        return x.pow(2).sum((2, 3), keepdim=True).sqrt()

    def net() -> nn.Module:
        return gated(lambda width: Gate(width, pool(SIDES[width])))()

    made, right = reverse(net(), input_size=SIZE), reverse(gated(lambda w: Gate(w, Function(root)))(), input_size=SIZE)
    images = torch.rand(2, *SIZE)
    with torch.no_grad():
        close(fill(made).eval()(images), fill(right).eval()(images), "power")
    with pytest.raises(ConversionError, match=r"'layer1\.0\.inner\.pool'"):
        reverse(net(), input_size=SIZE, filters="reversed")


class Headed(Net):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool  # type: ignore[assignment]


HEADS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "average": (lambda: nn.AvgPool2d(8), average),
    "average, without stride": (lambda: nn.AvgPool2d(8, 1), average),
    "maximum, without stride": (lambda: nn.MaxPool2d(8, 1), maximum),
    "maximum, size of the map": (lambda: Function(lambda x: F.max_pool2d(x, x.shape[2:], 1)), maximum),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    pool, summary = HEADS[name]
    for filters in ("mirror", "reversed"):
        made = reverse(Headed(pool()), input_size=SIZE, filters=filters)
        right = reverse(Headed(Function(summary)), input_size=SIZE, filters=filters)
        assert made.scales == right.scales
        for images in (torch.rand(2, *SIZE), torch.rand(2, 3, 40, 28)):
            with torch.no_grad():
                close(fill(made).eval()(images), fill(right).eval()(images), f"{name}, {filters}")


class Pooled(nn.Module):
    """A convolution, and a pooling without stride behind it."""

    def __init__(self, cin: int, cout: int, stride: int, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout), pool

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.pool(F.relu(self.bn(self.conv(x))))
        return made


Amounts = tuple[tuple[int, int], tuple[int, int]]
POOLS: dict[str, tuple[Callable[[], nn.Module], Amounts]] = {  # with the pixels seen (above, below), (left, right)
    "maximum": (lambda: nn.MaxPool2d(3, 1), ((1, 1), (1, 1))),
    "mean": (lambda: nn.AvgPool2d(3, 1), ((1, 1), (1, 1))),
    "even": (lambda: nn.AvgPool2d(2, 1), ((0, 1), (0, 1))),
    "too wide a padding": (lambda: nn.AvgPool2d(2, 1, padding=1), ((0, 1), (0, 1))),
    "some padding": (lambda: nn.MaxPool2d(5, 1, padding=1), ((2, 2), (2, 2))),
    "dilation": (lambda: nn.MaxPool2d(3, 1, 0, 2), ((2, 2), (2, 2))),
    "along one axis": (lambda: nn.AvgPool2d((1, 3), 1), ((0, 0), (1, 1))),
    "no square": (lambda: nn.MaxPool2d((2, 3), 1), ((0, 1), (1, 1))),
    "power": (lambda: nn.LPPool2d(2, 3, 1), ((1, 1), (1, 1))),
    "function": (lambda: Function(lambda x: F.max_pool2d(x, 3, 1)), ((1, 1), (1, 1))),
    "function by name": (
        lambda: Function(lambda x: F.avg_pool2d(x, kernel_size=3, stride=1)),
        ((1, 1), (1, 1)),
    ),
    "two side by side": (lambda: Function(lambda x: F.max_pool2d(x, 3, 1) + F.avg_pool2d(x, 3, 1)), ((1, 1), (1, 1))),
}


def pooled(pool: Callable[[], nn.Module]) -> Net:
    return Net(lambda cin, cout, stride: Pooled(cin, cout, stride, pool()))


def block(pool: Callable[[], nn.Module], name: str = "layer1.0") -> tuple[nn.Module, list[Tensor]]:
    """A block of the top-down network, and a list that gets what its pooling is to read."""
    torch.manual_seed(0)
    own = reverse(pooled(pool), input_size=(3, 64, 64), fast=False).eval().get_submodule(name)
    read: list[Tensor] = []
    own.get_submodule("bn").register_forward_hook(lambda _, __, made: read.append(F.relu(made)))
    return own, read


@pytest.mark.parametrize("name", POOLS)
def test_valid(name: str) -> None:
    """A pooling that takes a border off its map is there in the top-down network, as a 'same' one.

    Inside the map it computes what it did; at the border a constant map stays constant.
    """
    pool, ((above, below), (left, right)) = POOLS[name]
    own, read = block(pool)
    channels = cast(nn.Conv2d, own.get_submodule("conv")).in_channels
    with torch.no_grad():
        made = own(torch.randn(2, channels, 13, 11))
        expected = pool()(read[0])
        assert made.shape[2:] == (13, 11)
        inner = made[:, :, above : 13 - below, left : 11 - right]
        cuts = [(all_ - part) // 2 for all_, part in zip(expected.shape[2:], inner.shape[2:], strict=True)]
        size = inner.shape[2:]
        torch.testing.assert_close(inner, expected[:, :, cuts[0] :, cuts[1] :][:, :, : size[0], : size[1]])
        own.get_submodule("bn").weight.zero_()  # type: ignore[operator]
        own.get_submodule("bn").bias.fill_(1.5)  # type: ignore[operator]
        constant = own(torch.randn(1, channels, 9, 9))
        if name not in {"power", "too wide a padding", "two side by side"}:  # which add up, or average zeros
            torch.testing.assert_close(constant, torch.full_like(constant, 1.5))


@pytest.mark.parametrize("name", ["even", "too wide a padding", "along one axis"])
def test_verify_on_valid(name: str) -> None:
    result = verify(pooled(POOLS[name][0]), input_size=(3, 64, 64), filters="reversed")
    assert not result.failures, str(result.failures[0])


KEEPING: dict[str, Callable[[], nn.Module]] = {
    "maximum of neighbours": lambda: nn.MaxPool2d(3, 1, 1),
    "mean of neighbours": lambda: nn.AvgPool2d(3, 1, 1),
    "mean of those there are": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "contrast": lambda: Function(lambda x: x - F.avg_pool2d(x, 5, 1, 2)),
    "opening": lambda: Function(lambda x: F.max_pool2d(-F.max_pool2d(-x, 3, 1, 1), 3, 1, 1)),
    "padded before": lambda: Function(lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)),
    "padded before on one side": lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.AvgPool2d(2, 1)),
    "padded after": lambda: nn.Sequential(nn.AvgPool2d(3, 1), nn.ReplicationPad2d(1)),
    "padded after on one side": lambda: Function(lambda x: F.pad(F.avg_pool2d(x, 2, 1), (1, 0, 0, 1))),
    "padded after an activation": lambda: Function(lambda x: F.pad(F.max_pool2d(x, 3, 1).tanh(), (2, 0, 1, 1))),
    "cropped after": lambda: Function(lambda x: F.avg_pool2d(x, 2, 1, 1)[:, :, 1:, :-1]),
    "cropped by a padding": lambda: Function(lambda x: F.pad(F.max_pool2d(x, 2, 1, 1), (-1, 0, 0, -1))),
}


@pytest.mark.parametrize("name", KEEPING)
def test_keeping(name: str) -> None:
    """What keeps the size of its map is what it was, at the border too; convolutions around it pad for themselves."""
    own, read = block(KEEPING[name])
    with torch.no_grad():
        made = own(torch.randn(2, cast(nn.Conv2d, own.get_submodule("conv")).in_channels, 13, 11))
        torch.testing.assert_close(made, KEEPING[name]()(read[0]))
    for filters, net in (("reversed", pooled(KEEPING[name])), ("mirror", gated(lambda width: KEEPING[name]())())):
        made = reverse(net, input_size=SIZE, filters=filters)(torch.rand(2, 3, 40, 28))
        assert made.shape == (2, 10)


def test_padding_of_the_next_convolution() -> None:
    """A padding between a pooling and a convolution that does not pad is the convolution's, with its mode."""

    class Padded(nn.Module):
        def __init__(self, cin: int, cout: int, stride: int) -> None:
            super().__init__()
            self.pool, self.pad = nn.MaxPool2d(3, 1), nn.ReflectionPad2d(1)
            self.conv, self.bn = nn.Conv2d(cin, cout, 3, stride), nn.BatchNorm2d(cout)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.bn(self.conv(self.pad(self.pool(x)))))

    own = reverse(Net(Padded), input_size=(3, 64, 64), fast=False).eval().get_submodule("layer1.1")
    x = torch.randn(2, 8, 13, 11)
    with torch.no_grad():
        conv, read = cast(nn.Conv2d, own.get_submodule("conv")), F.pad(x, (1, 1, 1, 1), mode="replicate")
        made, pooled_map = own(read), F.max_pool2d(read, 3, 1)  # the pooling's own padding is outside of the block
        padded = F.pad(pooled_map, (1, 1, 1, 1), mode="reflect")
        expected = F.relu(own.get_submodule("bn")(F.conv2d(padded, conv.weight, conv.bias)))
        torch.testing.assert_close(made, expected)


class Inception(nn.Module):
    """Branches side by side, one of them a pooling of neighbours; strided, a pooling that does not pad."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, cout // 2
        self.one = nn.Conv2d(cin, half, 3, stride, 1)
        self.two = conv_bn(cin, cout - half, 1)

    def forward(self, x: Tensor) -> Tensor:
        pool = F.max_pool2d(x, 2) if self.stride == 2 else F.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.one(x), self.two(pool)], 1)


class Shortcut(Residual):
    """As in ResNet-D, with a pooling in the shortcut whether it strides or not."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__(cin, cout, stride)
        pool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1)) if stride == 1 else nn.AvgPool2d(2)
        width = nn.Identity() if cin == cout else nn.Sequential(nn.Conv2d(cin, cout, 1), nn.BatchNorm2d(cout))
        self.down = nn.Sequential(pool, width)


@pytest.mark.parametrize("kind", [Inception, Shortcut])
def test_branches(kind: type[nn.Module]) -> None:
    for filters in ("mirror", "reversed"):
        result = verify(Net(kind), input_size=SIZE, filters=filters)
        assert not result.failures, str(result.failures[0])


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x[:, :, 1:], x[:, :, :-1])


class Indexed(nn.Module):
    """The pooling that torch has for unpooling, whose maximum is one of two tensors."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = F.max_pool2d(x, 3, 1, return_indices=True)[0]
        return made


class Unfolded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unfold(2, 3, 1).unfold(3, 3, 1).amax((-1, -2))


@pytest.mark.parametrize("kind", [Neighbours, Indexed, Unfolded])
def test_borders_that_no_rule_knows(kind: type[nn.Module]) -> None:
    with pytest.raises(ConversionError, match=r"'layer.*test_poolings\.py:\d+|test_poolings\.py:\d+.*'layer"):
        reverse(pooled(kind), input_size=(3, 64, 64))
