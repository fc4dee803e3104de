"""Receptive fields against gradients: the pixels that move an output pixel of a network with positive weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from td_compiler import TopDownNet, reverse, zoo
from td_compiler.layers.pyramid import DOWNSAMPLERS, factor_pair
from td_compiler.report.reach import REACH_OF_FILTER
from td_compiler.report.receptive_fields import receptive_fields, receptive_fields_bottom_up
from td_compiler.report.report import ReceptiveField

Pair = tuple[int, int]
Extent = list[Pair]  # first and last pixel, along height and width


def positive(network: nn.Module) -> nn.Module:
    """Every weight positive, in double precision: no path is cut off, none cancels another, none underflows."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_filter = parameter.dim() > 1
            nn.init.constant_(parameter, 1 / parameter[0].numel() if is_filter else float(name == "weight"))
    return network.double().eval()


def slim(network: nn.Module, divisor: int) -> nn.Module:
    """The same network with fewer filters, averaging where it took a maximum, which has but one gradient."""
    for path, module in list(network.named_modules()):
        parent, name = network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        if isinstance(module, nn.Conv2d):
            inputs = module.in_channels // divisor if module.in_channels > 3 else module.in_channels
            setattr(parent, name, nn.Conv2d(inputs, module.out_channels // divisor, module.kernel_size, module.stride,
                                            module.padding, bias=module.bias is not None))  # fmt: skip
        elif isinstance(module, nn.BatchNorm2d):
            setattr(parent, name, nn.BatchNorm2d(module.num_features // divisor))
        elif isinstance(module, nn.Linear):
            setattr(parent, name, nn.Linear(module.in_features // divisor, module.out_features))
        elif isinstance(module, nn.MaxPool2d):
            setattr(parent, name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
    return network


def extent(gradient: torch.Tensor) -> Extent:
    """The rows and columns of an image (1, C, H, W) with a gradient: the first and the last of each."""
    touched = gradient[0].abs().sum(0) > 0
    return [(int(line.nonzero()[0]), int(line.nonzero()[-1])) for line in (touched.any(1), touched.any(0))]


def size(extents: list[Extent]) -> Pair:
    """(height, width) of what several extents cover together."""
    height, width = (max(e[axis][1] for e in extents) - min(e[axis][0] for e in extents) + 1 for axis in range(2))
    return height, width


def central(position: int, length: int, period: int) -> int:
    """The pixel next to the middle that has a given phase."""
    return length // 2 // period * period + position


def fields_by_gradient(network: TopDownNet, shape: tuple[int, int, int]) -> dict[str, ReceptiveField]:
    """The definition itself, pixel phase by pixel phase and entry by entry, on images of `shape` (C, H, W).

    Of more than 8 phases the first, the last and one in the middle are looked at, which see most of all upwards,
    downwards and in sum.
    """
    image = torch.ones(1, *shape, dtype=torch.double, requires_grad=True)
    levels = network.pyramid(image)
    entries = [level.detach().requires_grad_() for level in levels]
    maps = network.stage_maps(entries)
    coarsest = factor_pair(network.scales[-1])
    fields = {}
    for segment, features in zip(network.segments, maps, strict=False):
        period = math.lcm(*(c // s for c, s in zip(coarsest, factor_pair(segment.scale), strict=True)))
        through: dict[int, list[Pair]] = {}
        together = []
        for phase in range(period) if period <= 8 else (0, period // 2, period - 1):
            row, column = (central(phase, n, period) for n in features.shape[-2:])
            pixel = features[0, :, row, column].sum()
            gradients = torch.autograd.grad(pixel, entries, retain_graph=True, allow_unused=True)
            extents = []
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    (back,) = torch.autograd.grad(levels[index], image, gradient, retain_graph=True)
                    extents.append(extent(back))
                    through.setdefault(index, []).append(size(extents[-1:]))
            together.append(size(extents))
        sizes = [tuple(map(max, zip(*entry, strict=True))) for entry in through.values()]
        smallest, largest = tuple(map(min, zip(*sizes, strict=True))), tuple(map(max, zip(*together, strict=True)))
        fields[segment.name] = ReceptiveField(smallest, largest)
    return fields


class Oblong(nn.Module):
    """Scales that differ between height and width, kernels of even size, dilation, a factor of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 2, (3, 5), padding="same")
        self.two = nn.Conv2d(2, 2, (4, 3), padding="same", dilation=(1, 2))
        self.three = nn.Conv2d(2, 3, 2, padding="same")
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(F.relu(self.one(x)), (3, 1))
        x = F.avg_pool2d(F.relu(self.two(x)), (1, 2))
        return self.fc(F.relu(self.three(x)).mean((2, 3)))


def slim_nin() -> nn.Module:
    return slim(zoo.nin_light(), 8)


def slim_resnet32() -> nn.Module:
    return slim(zoo.resnet32(), 16)


def slim_resnet18() -> nn.Module:
    return slim(torchvision.models.resnet18(), 64)


# Network -> image size. Where the image is narrow, fields are compared along its height alone.
CASES: dict[Callable[[], nn.Module], tuple[int, int, int]] = {
    zoo.lenet_fc: (1, 80, 80),
    slim_nin: (1, 128, 12),
    slim_resnet32: (3, 208, 4),
    slim_resnet18: (3, 960, 32),
    Oblong: (1, 96, 48),
}


OPTIONS: list[dict[str, Any]] = [{"upsample": "bilinear", "merge": "add"}, {"downsample": "area"}]


@pytest.mark.parametrize(
    ("make", "options"),
    [(make, {}) for make in CASES] + [(make, options) for make in (zoo.lenet_fc, Oblong) for options in OPTIONS],
)
def test_top_down_fields_are_those_of_the_gradients(make: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    shape = CASES[make]
    td = reverse(make(), input_size=shape, **options)
    found, expected = receptive_fields(td), fields_by_gradient(positive(td), shape)
    axes = slice(1 if shape[2] < 48 else 2)
    assert list(found) == [f"stage{s}" if isinstance(s, int) else f"stage{s[0]}x{s[1]}" for s in td.scales]
    for name, field in expected.items():
        assert found[name].smallest[axes] == field.smallest[axes], name
        assert found[name].largest[axes] == field.largest[axes], name


def bottom_up_by_gradient(network: nn.Module, layers: list[str], shape: tuple[int, int, int]) -> list[Pair]:
    image = torch.ones(1, *shape, dtype=torch.double, requires_grad=True)
    maps: list[torch.Tensor] = []
    for path in layers:
        network.get_submodule(path).register_forward_hook(lambda _m, _i, output: maps.append(output))
    positive(network)(image)
    pixels = [m[0, :, m.shape[2] // 2, m.shape[3] // 2].sum() for m in maps]
    return [size([extent(torch.autograd.grad(pixel, image, retain_graph=True)[0])]) for pixel in pixels]


def test_bottom_up_fields_are_those_of_the_gradients() -> None:
    network = slim_resnet18()
    found = receptive_fields_bottom_up(network, (3, 640, 32))
    layers = ["relu", "layer1", "layer2", "layer3", "layer4"]
    expected = bottom_up_by_gradient(network, layers, (3, 640, 32))
    assert [field.smallest[0] for field in found.values()] == [height for height, _ in expected]
    assert all(field.smallest == field.largest for field in found.values())


class Odd(nn.Module):
    """Operators without a kernel, and paths that lie beside each other: slices, spaces to depth, uneven padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1)
        self.one = nn.Conv2d(4, 2, (3, 1), padding=(1, 0))
        self.two = nn.Conv2d(2, 2, 3, dilation=2, padding=2, groups=2)
        self.last = nn.Conv2d(4, 2, 3, padding="same")
        self.fc = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.one(F.pixel_unshuffle(x + self.first(x), 2)))
        x = x[:, :, 1::2, ::2]
        x = self.last(torch.cat((F.avg_pool2d(F.pad(x, (2, 0, 3, 0)), (4, 3), 1), self.two(x)), 1))
        return self.fc(x.mean((2, 3)))


def test_bottom_up_fields_of_unusual_operators() -> None:
    network, shape = Odd(), (1, 96, 96)
    found = receptive_fields_bottom_up(network, shape)
    (expected,) = bottom_up_by_gradient(network, ["last"], shape)
    assert found["stage4"] == ReceptiveField(expected, expected)
    assert expected[0] != expected[1]


PUBLISHED = {
    "alexnet": 195,
    "vgg16": 212,
    "inception_v3": 1311,
}  # Araujo, Norris and Sim, Distill 2019, doi:10.23915/distill.00021


@pytest.mark.parametrize("name", PUBLISHED)
def test_bottom_up_fields_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, **({"init_weights": False} if name == "inception_v3" else {}))
    found = receptive_fields_bottom_up(network, (3, 299, 299))
    assert list(found.values())[-1].largest == (PUBLISHED[name], PUBLISHED[name])


class Gated(nn.Module):
    def __init__(self, gate: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.squeeze = nn.Conv2d(4, 4, 1) if gate else None
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x))
        if self.squeeze is not None:
            x = torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1))) * x
        return self.fc(F.relu(self.deep(F.max_pool2d(x, 2))).mean((2, 3)))


def test_a_gate_over_all_of_the_image_is_not_counted() -> None:
    plain, gated = Gated(gate=False), Gated(gate=True)
    shape = (1, 16, 16)
    assert receptive_fields_bottom_up(gated, shape) == receptive_fields_bottom_up(plain, shape)
    assert receptive_fields(reverse(gated, input_size=shape)) == receptive_fields(reverse(plain, input_size=shape))


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("method", DOWNSAMPLERS)
def test_the_reach_of_every_way_to_scale_the_image(method: str, factor: int) -> None:
    """Pixel i of the scaled image depends on an image pixel if a single bright pixel there makes it bright."""
    height, middle = 24 * factor, 12
    single = torch.eye(height, dtype=torch.double).reshape(height, 1, height, 1).repeat(1, 1, 1, factor)
    bright = DOWNSAMPLERS[method](single, factor)[:, 0, middle, 0].nonzero().flatten() - middle * factor
    assert REACH_OF_FILTER[method](factor) == (int(bright[0]), int(bright[-1]))


def test_a_callable_whose_reach_is_unknown_leaves_only_what_does_not_need_it() -> None:
    td = reverse(zoo.lenet_fc(), downsample=lambda images, factor: DOWNSAMPLERS["area"](images, factor))
    assert set(receptive_fields(td).values()) == {None}
