"""Heads: what belongs to them, and what they read of the last map (SPEC 1.5, 2.12)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from td_compiler import ConversionError, reverse, verify
from td_compiler.options import Filters


class Net(nn.Module):
    """Three convolution units with pools between, as many more pools as asked for, and a head."""

    def __init__(self, head: nn.Module, pools: int = 2) -> None:
        super().__init__()
        units: list[nn.Module] = []
        for i, (a, b) in enumerate([(3, 8), (8, 12), (12, 16)]):
            units += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()] + ([nn.MaxPool2d(2)] if i < 2 else [])
        self.features = nn.Sequential(*units, *(nn.MaxPool2d(2) for _ in range(pools - 2)))
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class Head(nn.Module):
    def __init__(self, read: Callable[[torch.Tensor], torch.Tensor], features: int) -> None:
        super().__init__()
        self.read, self.fc = read, nn.Linear(features, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.read(x))


# name -> (how the head reads the map, features in the source, pools, features in the mirror, whether it averages)
FLATTENING: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int, int, int, bool]] = {
    "flatten": (lambda x: x.flatten(1), 16 * 64, 2, 8 * 64, True),
    "view": (lambda x: x.view(x.size(0), -1), 16 * 64, 2, 8 * 64, True),
    "reshape": (lambda x: x.reshape(len(x), 16 * 64), 16 * 64, 2, 8 * 64, True),
    "channels last": (lambda x: x.permute(0, 2, 3, 1).flatten(1), 16 * 64, 2, 8 * 64, True),
    "one pixel, flattened": (lambda x: x.flatten(1), 16, 5, 8, True),
    "one pixel, squeezed": (lambda x: x.squeeze(-1).squeeze(-1), 16, 5, 8, True),
    "one pixel, taken": (lambda x: x[:, :, 0, 0], 16, 5, 8, True),
    "pooled to 2x2": (lambda x: F.adaptive_max_pool2d(x, 2).flatten(1), 16 * 4, 2, 8 * 4, False),
    "mean over pixels": (lambda x: x.flatten(2).mean(-1), 16, 2, 8, False),
}


@pytest.mark.parametrize("name", FLATTENING)
def test_a_flatten_reads_the_map_at_the_size_that_it_has_in_the_source(name: str) -> None:
    read, features, pools, expected, averages = FLATTENING[name]
    td = reverse(Net(Head(read, features), pools), input_size=(3, 32, 32))
    assert td.get_submodule("head.fc").in_features == expected
    assert any("averaged" in note for note in td.report.notes) is averages
    for size in (32, 48):
        assert td(torch.rand(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize("name", ["flatten", "one pixel, squeezed", "channels last"])
def test_verify_finds_nothing_wrong(name: str) -> None:
    read, features, pools, *_ = FLATTENING[name]
    found = verify(Net(Head(read, features), pools), input_size=(3, 32, 32))
    assert found.passed, str(found)


def test_flattened_features_without_classifier_follow_the_width() -> None:
    td = reverse(Net(nn.Flatten()), input_size=(3, 32, 32))
    assert td(torch.rand(2, 3, 32, 32)).shape == (2, 8 * 64)
    assert any("no classifier" in note for note in td.report.notes)


class Mean(nn.Module):
    """A generalised mean, its powers written in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.fc = how, nn.Linear(16, 5)
        self.p = nn.Parameter(torch.full((1, 16, 1, 1) if how == "one exponent for each channel" else (1,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "squares":
            y = (x**2).mean((2, 3)).sqrt()
        elif self.how == "exponentials":
            y = F.adaptive_avg_pool2d(torch.exp(x), 1).log().flatten(1)
        elif self.how == "size of the map":
            y = F.avg_pool2d(torch.pow(torch.clamp(x, min=1e-6), self.p), x.shape[-2:]).pow(1 / self.p).flatten(1)
        else:
            y = x.abs().clamp(min=1e-6).pow(self.p).mean((-2, -1), keepdim=True).pow(1.0 / self.p).flatten(1)
        return self.fc(y)


@pytest.mark.parametrize("how", ["squares", "exponentials", "size of the map", "one exponent for each channel"])
def test_powers_around_a_global_average_are_of_the_head(how: str) -> None:
    td = reverse(Net(Mean(how)), input_size=(3, 32, 32))
    names = [str(getattr(node.target, "__name__", node.target)) for node in td.segments[0].graph.nodes]
    assert not {"pow", "pow_1", "exp", "clamp", "abs"} & set(names), "the coarsest stage takes powers"
    assert td(torch.rand(2, 3, 45, 32)).shape == (2, 5)


class Squares(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x).square()


def test_an_activation_that_squares_stays_in_its_unit() -> None:
    units = [nn.Conv2d(3, 8, 3, padding=1), Squares(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), Squares()]
    td = reverse(nn.Sequential(*units, Head(lambda x: x.mean((2, 3)), 16)), input_size=(3, 32, 32))
    assert "square" in [node.target for node in td.segments[0].graph.nodes]


class SideBySide(nn.Module):
    """Poolings side by side, of the map, or of a map that a block makes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.fc = how, nn.Linear(16 if how == "added" else 32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "added":
            return self.fc((x.amax((2, 3), keepdim=True) + x.mean((2, 3), keepdim=True)).flatten(1))
        average, highest = F.avg_pool2d(x, x.shape[-1]), F.adaptive_max_pool2d(x, 1)
        return self.fc(torch.cat([average, highest], 1).squeeze(-1).squeeze(-1))


@pytest.mark.parametrize("how", ["added", "concatenated"])
@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
def test_poolings_side_by_side_are_of_the_head(how: str, filters: Filters) -> None:
    td = reverse(Net(SideBySide(how)), input_size=(3, 32, 32), filters=filters)
    width = {"mirror": 8, "uniform": 12, "reversed": 16}[filters]
    assert td.get_submodule("head.fc").in_features == (width if how == "added" else 2 * width)
    assert [maps.shape[-1] for maps in td.stage_maps(td.pyramid(torch.rand(1, 3, 32, 32)))] == [
        8,
        16,
        32,
    ]


def test_a_pooled_head_runs_at_the_sources_last_size() -> None:
    """MobileNetV2's 1280 filters, two thirds of its products, read 7x7 pixels of the averaged last map (SPEC 2.12)."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(num_classes=5)
    full, pooled = (reverse(model, head=head, input_size=(3, 64, 64)).eval() for head in ("full", "pooled"))
    pooled.load_state_dict(full.state_dict())
    macs = [td.report.stages[-1].top_down.macs for td in (full, pooled)]
    last = full.get_submodule("features.18.0")
    assert isinstance(last, nn.Conv2d)
    products = last.in_channels * last.out_channels
    assert macs[0] - macs[1] == products * (64 * 64 - 2 * 2), "the source's last map is 2x2 for an image of 64x64"
    images = torch.rand(2, 3, 64, 64)
    maps = nn.functional.adaptive_avg_pool2d(full.forward_features(images), 2)
    head = nn.Sequential(*(full.get_submodule(f"features.18.{i}") for i in range(3)))
    scores = full.get_submodule("classifier.1")(head(maps).mean((2, 3)))
    torch.testing.assert_close(pooled(images), scores)
    assert any("averaged to 2x2" in note for note in pooled.report.notes)


def test_a_pooled_head_changes_no_head_that_only_pools() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5)
    full, pooled = (reverse(model, head=head, input_size=(3, 64, 64)).eval() for head in ("full", "pooled"))
    pooled.load_state_dict(full.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(full(images), pooled(images)) and not pooled.report.notes


class Triangle(torch.autograd.Function):
    """Of matrices (N, C, C) what is on and above their diagonals: (N, C (C + 1) / 2), `tall` with a last axis of 1."""

    @staticmethod
    def forward(ctx: Any, matrices: torch.Tensor, tall: bool) -> torch.Tensor:
        ctx.rows, ctx.columns = torch.triu_indices(matrices.shape[1], matrices.shape[1], device=matrices.device)
        ctx.shape = matrices.shape
        made = matrices[:, ctx.rows, ctx.columns]
        return made[..., None] if tall else made

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        made = gradient.new_zeros(ctx.shape)
        made[:, ctx.rows, ctx.columns] = gradient.flatten(1)
        return made, None


def covariance(x: torch.Tensor) -> torch.Tensor:
    x = x.flatten(2) - x.flatten(2).mean(2, keepdim=True)
    return x @ x.transpose(1, 2) / x.shape[2]


# name -> (how the head reads the map, its features of so many channels)
SECOND_ORDER: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[int], int]]] = {
    "pairs": (lambda x: Triangle.apply(covariance(x), False), lambda c: c * (c + 1) // 2),
    "pairs, flattened": (lambda x: Triangle.apply(covariance(x), True).flatten(1), lambda c: c * (c + 1) // 2),
    "all products": (lambda x: covariance(x).flatten(1), lambda c: c * c),
}


@pytest.mark.parametrize(("filters", "channels"), [("mirror", 8), ("uniform", 12), ("reversed", 16)])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_features_that_are_no_multiple_of_the_channels_are_counted(name: str, filters: Filters, channels: int) -> None:
    read, count = SECOND_ORDER[name]
    td = reverse(Net(Head(read, count(16))), input_size=(3, 32, 32), filters=filters)
    assert td.get_submodule("head.fc").in_features == count(channels)
    found = verify(Net(Head(read, count(16))), input_size=(3, 32, 32), filters=filters)
    assert found.passed, str(found)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ self.weight.t()


def test_features_that_only_so_many_channels_make_are_refused_by_name() -> None:
    with pytest.raises(ConversionError, match="matmul at 'head' cannot follow"):
        reverse(Net(Projected()), input_size=(3, 32, 32))
