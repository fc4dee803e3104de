"""Paddings and crops that move a map, or put another number than zero around it, stay in the top-down network."""

from __future__ import annotations

from collections.abc import Callable

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
