"""Paddings and crops that move a map, or put another number than zero around it, stay in the top-down network."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler import ConversionError, reverse, verify
from tests.test_idioms import FILTERS, SIZE, Make, Net, Residual


class FourWays(nn.Module):
    """A quarter of the channels to each side, by one padding and four crops."""

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        p, g = F.pad(x, (1, 1, 1, 1)), c // 4
        parts = [p[:, :g, 0:h, 1 : w + 1], p[:, g : 2 * g, 2:, 1 : w + 1], p[:, 2 * g : 3 * g, 1 : h + 1, 0:w]]
        return torch.cat([*parts, p[:, 3 * g :, 1 : h + 1, 2:]], 1)


class Shared(nn.Module):
    """Between a map and its neighbour, as far as is learned for every channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - self.share) + F.pad(x, (1, 0, 1, 0))[:, :, :-1, :-1] * self.share


class Turned(nn.Module):
    """A padding that cuts off as much as it puts in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, -1, 0, 0))


class Slope(nn.Module):
    """Differences between neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, 1:] - x[:, :, :-1], (0, 0, 0, 1))


class PaddedPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-1e4), 3, 1)


def gate(make: Callable[[], nn.Module]) -> Make:
    return lambda cin, cout, stride: Residual(cin, cout, stride, make())


class Padded(nn.Module):
    """A convolution whose padding is a step of its own."""

    def __init__(self, cin: int, cout: int, stride: int, pad: nn.Module) -> None:
        super().__init__()
        self.pad, self.conv, self.bn = pad, nn.Conv2d(cin, cout, 3, stride), nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(self.pad(x))))


class Causal(nn.Module):
    """Padded in front alone, by the convolution and a crop."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(cin, cout, 3, stride, 2), nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        end = -2 if self.conv.stride == (1, 1) else -1
        return F.relu(self.bn(self.conv(x)[:, :, :end, :end]))


KINDS: dict[str, Make] = {
    "four ways": gate(FourWays),
    "a learned share": lambda cin, cout, stride: Residual(cin, cout, stride, Shared(cout)),
    "a padding that cuts": gate(Turned),
    "differences": gate(Slope),
    "a padded pooling": gate(PaddedPool),
    "padded with a number": lambda cin, cout, stride: Padded(cin, cout, stride, nn.ConstantPad2d(1, 1.5)),
    "padded before a norm": lambda cin, cout, stride: Padded(
        cin, cout, stride, nn.Sequential(nn.ZeroPad2d(1), nn.BatchNorm2d(cin))
    ),
    "padded in front": lambda cin, cout, stride: Padded(cin, cout, stride, nn.ZeroPad2d((2, 0, 2, 0))),
    "padded and cropped": Causal,
}


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("name", KINDS)
def test_moved(name: str, filters: str) -> None:
    torch.manual_seed(0)
    model = Net(KINDS[name])
    result = verify(model, input_size=SIZE, filters=filters)
    assert not result.failures, str(result.failures[0])
    td = result.td
    assert td is not None
    assert not any("pads with" in note for note in td.report.notes)
    assert td(torch.rand(2, 3, 40, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", KINDS)
def test_blocks_compute_what_they_did(name: str) -> None:
    """A block that keeps the size of its map is the same function in both networks."""
    torch.manual_seed(0)
    model = Net(KINDS[name]).eval()
    td = reverse(model, input_size=SIZE, fast=False).eval()
    block, own = model.layer2[1], td.get_submodule("layer2.1")
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.uniform_(0.1, 1.0)
    own.load_state_dict(block.state_dict())
    x = torch.randn(2, 16, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(own(x), block(x))


def test_padding_for_several() -> None:
    """Convolutions that need different paddings cannot share one that none of them can do itself."""

    class Both(nn.Module):
        def __init__(self, cin: int, cout: int, stride: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(cin, cout, 5, stride), nn.Conv2d(cin, cout, 3, stride)

        def forward(self, x: Tensor) -> Tensor:
            p = F.pad(x, (2, 2, 2, 2), value=1.0)
            return F.relu(self.a(p) + self.b(p[:, :, 1:-1, 1:-1]))

    with pytest.raises(ConversionError, match=r"test_shifts\.py:\d+ .*pad right before each"):
        reverse(Net(Both), input_size=SIZE)


class Pooled(nn.Module):
    """A convolution, and a pooling without stride behind it."""

    def __init__(self, cin: int, cout: int, stride: int, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout), pool

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.pool(F.relu(self.bn(self.conv(x))))
        return made


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


POOLS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # with the pixels that its first one and last one see
    "maximum": (lambda: nn.MaxPool2d(3, 1), -1, 1),
    "mean": (lambda: nn.AvgPool2d(3, 1), -1, 1),
    "even": (lambda: nn.AvgPool2d(2, 1), 0, 1),
    "too wide a padding": (lambda: nn.AvgPool2d(2, 1, padding=1), 0, 1),
    "some padding": (lambda: nn.MaxPool2d(5, 1, padding=1), -2, 2),
    "dilation": (lambda: nn.MaxPool2d(3, 1, 0, 2), -2, 2),
    "power": (lambda: nn.LPPool2d(2, 3, 1), -1, 1),
    "function": (lambda: Function(lambda x: F.max_pool2d(x, 3, 1)), -1, 1),
    "function by name": (lambda: Function(lambda x: F.avg_pool2d(x, kernel_size=3, stride=1)), -1, 1),
    "padded by another layer": (lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.AvgPool2d(3, 1)), -1, 1),
}


def pooled(name: str) -> Net:
    return Net(lambda cin, cout, stride: Pooled(cin, cout, stride, POOLS[name][0]()))


@pytest.mark.parametrize("name", POOLS)
def test_valid_pooling(name: str) -> None:
    """A pooling that takes a border off its map is there in the top-down network, as a 'same' one (SPEC 2.4).

    Inside the map it computes what it did; at the border a constant map stays constant.
    """
    torch.manual_seed(0)
    make, first, last = POOLS[name]
    own = reverse(pooled(name), input_size=(3, 64, 64), fast=False).eval().get_submodule("layer2.1")
    channels = cast(nn.Conv2d, own.get_submodule("conv")).in_channels
    read: list[Tensor] = []
    own.get_submodule("bn").register_forward_hook(lambda _, __, made: read.append(made))
    with torch.no_grad():
        made = own(torch.randn(2, channels, 13, 11))
        expected = make()(F.relu(read[0]))
        assert made.shape[2:] == (13, 11)
        inner = made[:, :, -first : 13 - last, -first : 11 - last]
        (h, w), cut = inner.shape[2:], (expected.shape[2] - inner.shape[2]) // 2
        torch.testing.assert_close(inner, expected[:, :, cut : cut + h, cut : cut + w])
        own.get_submodule("bn").weight.zero_()  # type: ignore[operator]
        own.get_submodule("bn").bias.fill_(1.5)  # type: ignore[operator]
        constant = own(torch.randn(1, channels, 9, 9))
        if name not in {"power", "too wide a padding"}:  # which add up, and average zeros of their own
            torch.testing.assert_close(constant, torch.full_like(constant, 1.5))


@pytest.mark.parametrize("name", ["even", "too wide a padding"])
def test_verify_on_valid_pooling(name: str) -> None:
    result = verify(pooled(name), input_size=(3, 64, 64), filters="reversed")
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
    with pytest.raises(ConversionError, match=r"'layer.*test_shifts\.py:\d+|test_shifts\.py:\d+.*'layer"):
        reverse(Net(lambda cin, cout, stride: Pooled(cin, cout, stride, kind())), input_size=(3, 64, 64))
