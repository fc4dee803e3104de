"""Layers that have numbers or odd words for names are reached by place, and runs of named ones by name."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from td_compiler import reverse
from td_compiler.benchmarks.experiments.emission import read_text
from td_compiler.emission import emit_source


def conv(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class Appended(nn.Sequential):
    """The maps of all layers, behind one that it is given."""

    def forward(self, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        maps = [first]
        for layer in self:
            maps.append(layer(maps[-1] if len(maps) > 1 else x))
        return torch.cat(maps, 1)


class Aggregated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = conv(width, 8)
        self.layers = Appended(conv(8, 8), conv(8, 8), conv(8, 8))
        self.join = conv(width + 24, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(self.layers(self.reduce(x), x))


class Oddly(nn.Sequential):
    """Blocks whose names are no attributes."""

    def __init__(self, name: str, channels: int, width: int) -> None:
        super().__init__(OrderedDict([(f"{name}-0", Growing(channels, width))]))


class Growing(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = conv(channels, width, 2)
        self.body = nn.Sequential(conv(channels, width, 2), conv(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x) + self.body(x)


class Named(nn.Module):
    """A few layers in a row, and many, of one container that something else interrupts."""

    def __init__(self, many: int) -> None:
        super().__init__()
        named = [("stem", conv(3, 16, 2)), ("one", Aggregated(16)), ("two", Aggregated(16)), ("down", conv(16, 24, 2))]
        named += [(f"many{i}", conv(24, 24)) for i in range(many)]
        self.features = nn.Sequential(OrderedDict(named))
        self.trunk = nn.Sequential(Oddly("block1", 24, 32), conv(32, 32, 2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.trunk(self.features(x)).mean((2, 3)))


@pytest.mark.parametrize("many", [4, 8])
def test_no_string_in_a_forward(many: int) -> None:
    torch.manual_seed(0)
    model = Named(many)
    td = reverse(model, fast=False, input_size=(3, 32, 32)).eval()
    text = emit_source(td, class_name="Net", origin="here")
    found = read_text("named", text, model)
    assert not found.indexed and not found.numbered, text
    assert "class Appended(nn.Sequential):" in text and "        for layer in self:\n            x = layer(x)\n" in text
    assert "class Oddly(nn.Sequential):" in text and "return self[0](" in text
    assert ("self.features.many3(x)" in text) == (many == 4)
    assert ("in list(self.features.values())[" in text) == (many == 8)
    namespace: dict[str, type[nn.Module]] = {}
    exec(text, namespace)
    net = namespace["Net"]()
    net.load_state_dict(td.state_dict())
    images = torch.randn(2, 3, 41, 32)
    assert torch.equal(net.eval()(images), td(images))


class Permute(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.permute(x, self.dims)


class Mixed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = conv(channels, 16, 2)
        self.block = nn.Sequential(Permute(0, 2, 3, 1), nn.LayerNorm(16), nn.Linear(16, 16), Permute(0, 3, 1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        return x + self.block(x)


class Permuting(nn.Module):
    """Blocks with functions between the layers of a Sequential, and a head with one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 2)
        self.one, self.two = Mixed(8), Mixed(16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.BatchNorm2d(16), nn.Flatten(1), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.two(self.one(self.stem(x)))))


def test_functions_keep_their_places_among_layers() -> None:
    """So that the Sequential is called as one, hooks on it fire, and its layers have the source's numbers."""
    torch.manual_seed(0)
    td = reverse(Permuting(), fast=False, input_size=(3, 32, 32)).eval()
    text = emit_source(td, class_name="Net", origin="here")
    assert "self.block = nn.Sequential(Permute(dims=(0, 2, 3, 1)), " in text and "self.block(x)" in text
    assert "return self.classifier[:2](x) if pre_logits else self.classifier(x)" in text
    seen: list[str] = []
    for name in ("two.block", "two.block.0", "classifier", "classifier.1"):
        td.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    images = torch.randn(2, 3, 33, 32)
    scores = td(images)
    assert seen == ["two.block.0", "two.block", "classifier.1", "classifier"]
    namespace: dict[str, type[nn.Module]] = {}
    exec(text, namespace)
    net = namespace["Net"]()
    net.load_state_dict(td.state_dict())
    assert torch.equal(net.eval()(images), scores)
