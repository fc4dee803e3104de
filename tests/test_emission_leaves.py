"""Layers from outside torch in emitted source: as torch's own, as what their forward computes, or carried whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler.errors import ConversionError
from td_compiler.network.base import TopDownNet
from tests.test_emission_unit import Builder, emit, head, network, ruff


class ConstructorOnly(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)


class OtherWords(nn.GroupNorm):
    """Another forward that computes the same."""

    def __init__(self, channels: int, groups: int = 3) -> None:
        super().__init__(groups, channels)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.eps, float)
        return F.group_norm(data, self.num_groups, self.weight, self.bias, self.eps)


class ChannelsFirst(nn.LayerNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def keep_size(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Pads by the size of the map, which a trace would take for a constant."""
    short = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[:-3:-1]]
    return F.pad(x, [side for s in short for side in (s // 2, s - s // 2)])


class Standardised(nn.Conv2d):
    """A weight of its own making, and an attribute that its constructor derives from its width."""

    def __init__(self, inputs: int, outputs: int, power: float) -> None:
        super().__init__(inputs, outputs, 3)
        self.scale = outputs**power
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = keep_size(x, self.kernel_size[0], 2)
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight * (self.gain * self.scale), self.bias, 2)


class Moody(nn.ReLU):
    """Another forward in training, which one trace does not tell."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.training else -super().forward(-x)


class Derived(nn.Module):
    """A leaf with a setting that its arguments do not tell, once it was changed."""

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        self.power = power
        self.factor = 2**power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Scale(nn.Module):
    """Holds a parameter for its unit's forward."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))


def one_stage(*layers: nn.Module) -> TopDownNet:
    modules: dict[str, nn.Module] = {}
    b = Builder(modules, "stage1", 1, "image")
    x = b.inputs[0]
    for i, layer in enumerate(layers):
        x = b.layer(f"layer{i}", layer, x)
    return network(modules, [b.end(x), head(modules, 6)])


def run(source: str, td: TopDownNet, *, training: bool = False) -> list[torch.Tensor]:
    """The scores of the emitted network, with the state of `td`, for images of an even and of an odd size."""
    scope: dict[str, Any] = {"__name__": "emitted"}
    exec(source, scope)
    emitted = scope["Net"]().train(training)
    emitted.load_state_dict(td.state_dict(), strict=True)
    return scores(emitted)


def scores(net: nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return [net(torch.rand(2, 3, *size, generator=generator)) for size in ((8, 12), (13, 9))]


def is_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == 2 and all(map(torch.equal, ours, theirs))


def test_a_subclass_that_computes_as_its_layer_is_written_as_the_layer() -> None:
    td = one_stage(nn.Conv2d(3, 6, 1), ConstructorOnly(6), OtherWords(6))
    source = emit(td)
    assert "nn.BatchNorm2d(6, eps=0.001)" in source
    assert "nn.GroupNorm(3, 6)" in source
    assert "ConstructorOnly" not in source
    assert "OtherWords" not in source
    assert is_equal(run(source, td), scores(td))


def test_another_subclass_is_written_as_what_its_forward_computes(tmp_path: Path) -> None:
    td = one_stage(ChannelsFirst(3), Standardised(3, 4, -0.5), Standardised(4, 6, -1.0), ChannelsFirst(6))
    td.layer2.scale = 0.7  # as a pass may change it
    source = emit(td)
    assert source.count("class ChannelsFirst(nn.Module):") == 1
    assert "self.layer0 = ChannelsFirst(3)" in source
    assert source.count("def keep_size(") == 1
    assert is_equal(run(source, td), scores(td))
    (tmp_path / "network.py").write_text(source)
    assert ruff("check", "--isolated", "--select", "E,F,I,UP", str(tmp_path)) == ""
    assert ruff("format", "--isolated", "--check", str(tmp_path)) == ""


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_that_follows_the_mode_is_carried_whole(training: bool) -> None:
    td = one_stage(nn.Conv2d(3, 6, 1), Moody())
    td.classifier[1].p = 0.0
    source = emit(td.eval())
    assert "class Moody(nn.ReLU):" in source
    assert is_equal(run(source, td, training=training), scores(td.train(training)))
    assert not is_equal(run(source, td, training=training), scores(td.train(not training)))


def test_a_carried_class_must_build_the_settings_too() -> None:
    td = one_stage(nn.Conv2d(3, 6, 1), Derived(2))
    assert is_equal(run(emit(td), td), scores(td))
    td.layer1.factor = 3
    with pytest.raises(ConversionError, match=r"layer1: .*Derived cannot be written as source: Derived\(power=2\)"):
        emit(td)


def test_what_prepares_a_parameter_belongs_to_the_unit_that_reads_it() -> None:
    modules: dict[str, nn.Module] = {}
    b = Builder(modules, "stage1", 1, "image")
    x = b.layer("stem", nn.Conv2d(3, 6, 1), b.inputs[0])
    for i in range(2):
        modules[f"blocks.{i}"] = Scale(6)
        b.within("")
        scale = b.method("reshape", b.attribute(f"blocks.{i}.scale"), 1, -1, 1, 1)
        b.within(f"blocks.{i}", "Block")
        x = b.call(torch.add, x, b.method("mul", b.layer(f"blocks.{i}.conv", nn.Conv2d(6, 6, 1), x), scale))
    td = network(modules, [b.end(x), head(modules, 6)])
    source = emit(td)
    assert "self.blocks = nn.Sequential(Block(), Block())" in source
    assert "self.scale.reshape(1, -1, 1, 1)" in source
    assert is_equal(run(source, td), scores(td))
