"""What a network does to the image before its first layer runs once, before the pyramid (SPEC 1.0)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import fuse, reverse, verify
from td_compiler.network.pretrained import from_pretrained
from td_compiler.network.taps import tapped


class Body(nn.Module):
    """Three convolution units with pools between."""

    def __init__(self, channels: int = 3, padding: int = 1) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(channels, 8, 3, 1, padding),
            nn.Conv2d(8, 12, 3, 1, 1),
            nn.Conv2d(12, 16, 3, 1, 1),
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = F.max_pool2d(F.relu(self.b(x)), 2)
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


def coordinates(x: torch.Tensor) -> torch.Tensor:
    rows = torch.linspace(-1, 1, x.shape[2]).view(1, 1, -1, 1).expand(x.shape[0], 1, -1, x.shape[3])
    return torch.cat([x, rows], 1)


class Luma(nn.Module):
    """Mixes the channels by a fixed matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mix", torch.rand(3, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nchw,dc->ndhw", x, self.mix)


class Standard(nn.Module):
    """Every image by its own mean and deviation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-3)


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


PROLOGUES: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "batch norm": (3, lambda: nn.BatchNorm2d(3)),
    "channels mixed": (3, Luma),
    "standardised": (3, Standard),
    "gamma": (3, lambda: Function(lambda x: x.clamp(min=1e-3) ** 0.45)),
    "channels chosen": (3, lambda: Function(lambda x: x[:, 1:])),
    "channels padded": (3, lambda: Function(lambda x: F.pad(x, (0, 0, 0, 0, 0, 1)))),
    "split and stacked": (
        3,
        lambda: Function(lambda x: torch.cat([c * w for c, w in zip(x.split(1, 1), (0.3, 0.6, 0.1), strict=True)], 1)),
    ),
    "grey": (3, lambda: Function(lambda x: x.mean(1, keepdim=True))),
    "padded, then scaled": (3, lambda: Function(lambda x: F.pad(x, (2, 2, 2, 2)) * 2)),
    "doubled": (3, lambda: Function(lambda x: F.interpolate(x, scale_factor=2.0))),
}
CHANNELS = {"channels chosen": 2, "channels padded": 4, "grey": 1}


def values(net: nn.Module) -> nn.Module:
    """Equal values for parameters of equal shape."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(
                torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel() + p.dim())) / p[0].numel() ** 0.5
            )
    return net.eval()


@pytest.mark.parametrize("name", PROLOGUES)
def test_prologue_runs_once_before_the_pyramid(name: str) -> None:
    channels, make = PROLOGUES[name]
    source = nn.Sequential(make(), Body(CHANNELS.get(name, 3)))
    td = reverse(source, input_size=(channels, 32, 32))
    right = reverse(Body(CHANNELS.get(name, 3)), input_size=(CHANNELS.get(name, 3), 32, 32))
    x = torch.rand(2, channels, 32, 32)
    prepare = values(make())
    assert sum(p.numel() for p in td.parameters()) == sum(
        p.numel() for p in [*right.parameters(), *prepare.parameters()]
    )
    with torch.no_grad():
        assert torch.allclose(values(td)(x), values(right)(prepare(x)), atol=1e-5)
    assert td.pyramid(x)[0].shape[1] == CHANNELS.get(name, 3)
    assert torch.equal(td.forward_pyramid(td.pyramid(x)), td(x))
    assert any("before the pyramid" in note for note in td.report.notes)


@pytest.mark.parametrize("name", ["batch norm", "channels mixed", "standardised", "grey", "padded, then scaled"])
def test_verify_finds_nothing_wrong(name: str) -> None:
    channels, make = PROLOGUES[name]
    found = verify(nn.Sequential(make(), Body(CHANNELS.get(name, 3))), input_size=(channels, 32, 32))
    assert found.passed, str(found)


def test_padding_before_the_first_convolution_is_its_own() -> None:
    net = nn.Sequential(Function(lambda x: F.pad(x * 2, (1, 1, 1, 1))), Body(padding=0))
    td = reverse(net, input_size=(3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    assert td.pyramid(x)[0].shape == x.shape
    with torch.no_grad():
        assert torch.allclose(values(td)(x), values(reverse(Body(), input_size=(3, 32, 32)))(2 * x), atol=1e-5)


def test_no_prologue_where_the_network_begins_with_a_layer() -> None:
    assert reverse(Body(), input_size=(3, 32, 32)).prologue is None


def test_everything_done_with_a_network_does_the_prologue_too(tmp_path: Path) -> None:
    td = reverse(nn.Sequential(nn.BatchNorm2d(3), Luma(), Body()), input_size=(3, 32, 32))
    td(torch.rand(8, 3, 32, 32))
    td.eval()
    x = torch.rand(2, 3, 32, 32)
    expected = td(x)
    assert torch.equal(copy.deepcopy(td)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(td))(x), expected)
    assert torch.allclose(fuse(td)(x), expected, atol=1e-5)
    assert torch.allclose(tapped(td)(x), expected, atol=1e-6)
    assert torch.equal(from_pretrained(td.save_pretrained(tmp_path / "td"), trust_code=True)(x), expected)
    assert torch.allclose(torch.export.export(td, (x,)).module()(x), expected, atol=1e-5)
    twin = copy.deepcopy(td)
    first = twin.get_submodule("0")
    assert isinstance(first, nn.BatchNorm2d)
    first.bias.data += 1  # a copy's pyramid prepares with the copy's layers
    assert not torch.allclose(twin(x), expected)
    assert torch.equal(td(x), expected)
