"""Operators and block forms that need more than shapes to be read, each in a small network of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, CondConv2d
from torch import nn
from torchvision.ops import Permute

from td_compiler import reverse, verify
from td_compiler.graph.operators import LAYERS, LIBRARY_LAYERS, layer_row

SIZE = (3, 32, 32)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(0))


def assert_verified(model: nn.Module, **options: str) -> None:
    verification = verify(model, input_size=SIZE, **options)
    assert verification.passed, "; ".join(map(str, verification.failures))


class Features(nn.Module):
    """A network without classifier: its output is a pooled map."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 16, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.two(F.relu(self.one(x))))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def test_without_classifier_the_output_is_the_last_stages_features() -> None:
    td = reverse(Features(), input_size=SIZE)
    last = td.stage_maps(td.pyramid(images()))[-1]
    assert last.shape == (2, 6, 32, 32)
    torch.testing.assert_close(td(images()), torch.cat([last.mean((2, 3)), last.amax((2, 3))], 1))
    assert "The network has no classifier: it returns its 12 features, where the source returns 32." in td.report.notes
    assert_verified(Features())


class Mixture(nn.Module):
    """A strided convolution, dense or depthwise, whose filters are mixed for every image from those of experts."""

    def __init__(self, groups: int, padding: str) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.route = nn.Linear(8, 3)
        self.mixed = CondConv2d(8, 16, 3, stride=2, groups=groups, padding=padding, num_experts=3, bias=True)
        self.three = nn.Conv2d(16, 24, 3, padding=1)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.two(F.relu(self.one(x))))
        x = F.relu(self.mixed(x, torch.sigmoid(self.route(x.mean((2, 3))))))
        return self.fc(F.relu(self.three(x)).mean((2, 3)))


@pytest.mark.parametrize("filters", ["mirror", "uniform"])
@pytest.mark.parametrize(("groups", "padding"), [(1, ""), (8, "same")])
def test_filters_mixed_for_every_image(groups: int, padding: str, filters: str) -> None:
    td = reverse(Mixture(groups, padding), input_size=SIZE, filters=filters).eval()
    layer, seen = td.get_submodule("mixed"), []
    layer.register_forward_hook(lambda _, given, made: seen.append((*given, made)))
    scores = td(images())
    (x, routing, made) = seen[0]
    assert routing.shape == (2, 3) and x.shape[2:] == made.shape[2:]
    weights = (routing @ layer.weight).view(2, made.shape[1], -1, 3, 3)
    biases = routing @ layer.bias
    for image, weight, bias, expected in zip(x, weights, biases, made, strict=True):
        found = F.conv2d(image[None], weight, bias, padding=1, groups=x.shape[1] // weight.shape[1])
        torch.testing.assert_close(found[0], expected)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in td.parameters())
    assert_verified(Mixture(groups, padding), filters=filters)


def test_a_library_layer_is_known_by_name_and_by_base() -> None:
    assert layer_row(CondConv2d(4, 4, 3)) is LIBRARY_LAYERS["timm.layers.cond_conv2d.CondConv2d"]
    assert layer_row(type("Own", (CondConv2d,), {})(4, 4, 3)) is layer_row(CondConv2d(4, 4, 3))
    assert layer_row(type("Own", (nn.Conv2d,), {})(4, 4, 3)) is LAYERS[nn.Conv2d]


class RootMeanSquare(nn.Module):
    """Divides groups of channels by their root mean square, with the number of groups written into the source."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, self.groups, c // self.groups, h, w)
        rms = parts.square().mean((2, 3, 4), keepdim=True).sqrt()
        return x / rms.expand(parts.shape).reshape(n, c, h, w)


class Grouped(nn.Module):
    """A stem of 6 channels in 3 groups in front of stages of 8 channels, which 3 does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), RootMeanSquare(3), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.two(self.one(self.stem(x))).mean((2, 3)))


def test_groups_written_into_the_source_fit_the_new_width() -> None:
    td = reverse(Grouped(), input_size=SIZE, merge="add").eval()
    image = td.pyramid(images())[-1]
    lifted = F.conv2d(image, td.get_submodule("entry.4").conv.weight, padding=1)
    expected = F.relu(lifted / lifted.square().mean((1, 2, 3), keepdim=True).sqrt())  # 3 and 8 share one group
    first = next(layer for name, layer in td.named_modules() if name in {"two.0", "one.0"} and layer.in_channels == 8)
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    td(images())
    torch.testing.assert_close(seen[0], expected)


class Ghost(nn.Module):
    """A residual block of parallel convolutions whose shortcut, where it has layers, is separable."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(inputs, outputs // 2, 3, stride, 1) for _ in range(3))
        self.cheap = nn.Conv2d(outputs // 2, outputs // 2, 3, padding=1, groups=outputs // 2)
        self.shortcut = nn.Sequential()
        if stride > 1:
            depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs)
            self.shortcut = nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = F.relu(sum(branch(x) for branch in self.branches))
        return torch.cat([made, self.cheap(made)], 1) + self.shortcut(x)


class Mixer(nn.Module):
    """A depthwise residual step and a gate, neither of which can change the width, then a pointwise residual step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.expand, self.project = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.depthwise(x)
        x = x * self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x + self.project(F.relu(self.expand(x)))


class Blocks(nn.Module):
    def __init__(self, *blocks: nn.Module, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def test_a_separable_shortcut_is_a_projection() -> None:
    """The finest stage's first block gets one like it; the coarsest stage's no longer changes shape and loses it."""
    td = reverse(Blocks(Ghost(8, 8, 1), Ghost(8, 16, 2), Ghost(16, 16, 1), width=16), input_size=SIZE)
    weights = {name: tuple(value.shape) for name, value in td.state_dict().items() if "shortcut" in name}
    assert weights["blocks.0.shortcut.0.weight"] == (16, 1, 3, 3)
    assert weights["blocks.0.shortcut.2.weight"] == (8, 16, 1, 1)
    assert not any(name.startswith("blocks.1") for name in weights)
    assert_verified(Blocks(Ghost(8, 8, 1), Ghost(8, 16, 2), Ghost(16, 16, 1), width=16))


def test_the_step_that_can_change_the_width_gets_the_projection() -> None:
    def model() -> nn.Module:
        return Blocks(Mixer(8), nn.Conv2d(8, 16, 3, stride=2, padding=1), Mixer(16), Mixer(16), width=16)

    td = reverse(model(), input_size=SIZE)
    assert td.get_submodule("blocks.0.project").out_channels == 8
    assert_verified(model())


def test_a_projection_within_a_block_gives_way_to_what_its_shortcut_read() -> None:
    """With one width everywhere no block needs one: the shortcut again reads what follows the depthwise step."""
    blocks = (Mixer(16), nn.Conv2d(16, 16, 3, stride=2, padding=1), Mixer(16))
    td = reverse(Blocks(nn.Conv2d(8, 16, 1), *blocks, width=16), input_size=SIZE, filters="uniform")
    assert not any("projection" in name for name, _ in td.named_modules())
    assert_verified(Blocks(nn.Conv2d(8, 16, 1), *blocks, width=16), filters="uniform")


class Cell(nn.Module):
    """Takes and returns two maps: its own and the first one of the stage."""

    def __init__(self, inputs: int, outputs: int, skip: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.last = nn.Conv2d(outputs + skip, outputs, 1)

    def forward(self, maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        made = F.relu(self.conv(maps[0]))
        if len(maps) == 1:
            made = self.last(made)
            return made, made
        return self.last(torch.cat([made, maps[1]], 1)), maps[1]


class Cells(nn.Module):
    """A container of all stages: it is no block, though a cut-free run of cells stands directly in it."""

    def __init__(self) -> None:
        super().__init__()
        self.firsts = nn.ModuleList([Cell(8, 12, 0, 2), Cell(12, 16, 0, 2)])
        self.others = nn.ModuleList([Cell(12, 12, 12, 1), Cell(12, 12, 12, 1), Cell(16, 16, 16, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.others[1](self.others[0](self.firsts[0]((x,))))
        return self.others[2](self.firsts[1]((maps[0],)))[0]


def test_a_module_that_holds_several_stages_is_no_block() -> None:
    model = Blocks(Cells(), width=16)
    assert reverse(model, input_size=SIZE).scales == (1, 2, 4)
    assert_verified(model)


class GlobalContext(nn.Module):
    """One product of two maps, a pooling with learned weights, is no attention between positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask, self.transform = nn.Conv2d(width, 1, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.mask(x).flatten(1).softmax(-1)[:, :, None]
        return x + self.transform((x.flatten(2) @ weights)[..., None])


def test_a_pooling_with_learned_weights_converts() -> None:
    assert_verified(
        Blocks(GlobalContext(8), GlobalContext(8), nn.Conv2d(8, 16, 3, stride=2), GlobalContext(16), width=16)
    )


def test_a_permutation_of_many_channels_is_no_pooling() -> None:
    """Moving 1024 channels to the end makes the last two axes of any map longer, not shorter."""
    with torch.device("meta"):
        norm = nn.Sequential(Permute([0, 2, 3, 1]), nn.LayerNorm(1024), Permute([0, 3, 1, 2]))
        model = Blocks(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1024, 2, 2), norm, nn.Conv2d(1024, 8, 1), width=8)
    assert reverse(model, input_size=SIZE).scales == (1, 2)


def test_a_norm_with_an_activation_of_its_own_stays_a_norm() -> None:
    """Its forward calls `F.batch_norm`, which is traced through; the running statistics must stay in use."""
    blocks = (nn.Conv2d(8, 8, 3, padding=1), BatchNormAct2d(8), nn.Conv2d(8, 16, 3, 2, 1), BatchNormAct2d(16))
    td = reverse(Blocks(*blocks, width=16), input_size=SIZE).eval()
    norms = [name for name, layer in td.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {"blocks.1", "blocks.3"} <= set(norms)
    for name in norms:
        torch.nn.init.ones_(td.get_parameter(f"{name}.bias"))  # so that no activation puts out zeros alone
    before = td(images())
    for name in ("blocks.1", "blocks.3"):
        with torch.no_grad():
            td.get_buffer(f"{name}.running_mean").add_(1)
        after = td(images())
        assert not torch.allclose(after, before)
        before = after


class Parallel(nn.Module):
    """Convolutions side by side, summed, as in a network that can be folded into plain convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.spatial = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, stride, 1) for _ in range(3))
        self.pointwise = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summed = self.pointwise(x)
        for layer in self.spatial:
            summed = summed + layer(x)
        return F.relu(summed)


def test_convolutions_side_by_side_are_no_projections() -> None:
    """At the coarsest scale the block no longer changes shape; all of its branches stay."""
    stem = nn.Conv2d(3, 8, 3, padding=1)
    model = nn.Sequential(
        stem, Parallel(8, 8, 1), Parallel(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    td = reverse(model, input_size=SIZE)
    branches = {name for name, _ in model.named_parameters() if name.startswith(("1.", "2."))}
    assert len(branches) == 16
    assert branches <= set(td.state_dict())
    assert_verified(model)
