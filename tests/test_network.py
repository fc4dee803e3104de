"""A top-down network behaves as any module does, and as SPEC 2 says."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.func import functional_call

from td_compiler import ConversionError, TopDownNet, reverse, verify, zoo
from tests.support.vgg import torchvision_network


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 45, 33, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def td() -> TopDownNet:
    torch.manual_seed(0)
    return reverse(torchvision.models.resnet18(num_classes=7)).eval()


def test_features_grow_from_coarse_to_fine(td: TopDownNet, images: torch.Tensor) -> None:
    sizes = [tuple(m.shape[1:]) for m in td.stage_maps(td.pyramid(images))]
    widths = [512, 256, 128, 64, 64, 64]
    maps = [(2, 2), (3, 3), (6, 5), (12, 9), (23, 17), (45, 33)]
    assert sizes == [(width, *size) for width, size in zip(widths, maps, strict=True)]


def test_pyramid_and_forward_agree(td: TopDownNet, images: torch.Tensor) -> None:
    levels = td.pyramid(images)
    assert torch.equal(levels[0], images)
    assert torch.equal(td(images), td.forward_pyramid(levels))


def test_one_level_can_be_perturbed(td: TopDownNet, images: torch.Tensor) -> None:
    """Every scale's image reaches the output on its own."""
    clean = td(images)
    for k in range(len(td.scales)):
        levels = [level + 0.5 * (i == k) for i, level in enumerate(td.pyramid(images))]
        assert not torch.allclose(td.forward_pyramid(levels), clean)


def test_wrong_number_of_levels(td: TopDownNet, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="2 images for 6 scales"):
        td.forward_pyramid([images, images])


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies_are_independent(td: TopDownNet, images: torch.Tensor, way: str) -> None:
    if way == "deepcopy":
        twin = copy.deepcopy(td)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(td))
    else:
        buffer = io.BytesIO()
        torch.save(td, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    before = td(images)
    assert torch.equal(twin(images), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(td(images), before)
    assert twin.stage_maps(twin.pyramid(images))[-1].abs().sum() == 0  # `features` belongs to the copy


def test_plain_state_dict_loads_by_weights_only(td: TopDownNet, images: torch.Tensor) -> None:
    buffer = io.BytesIO()
    torch.save(td.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(1)
    other = reverse(torchvision.models.resnet18(num_classes=7)).eval()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(images), td(images))


def test_users_names(td: TopDownNet) -> None:
    assert td.state_dict()["layer4.0.conv2.weight"].shape == (512, 512, 3, 3)
    assert isinstance(td.layer4[1].conv1, nn.Conv2d)
    assert isinstance(td.get_submodule("merge.16.norm"), nn.BatchNorm2d)


def test_layers_called_features_stay_there() -> None:
    """VGG keeps its layers under `features`, which is also what returns the maps."""
    td = reverse(torchvision.models.vgg11(num_classes=3)).eval()
    x = torch.randn(1, 3, 32, 32)
    assert td.get_submodule("features.0").weight.shape == (64, 64, 3, 3)
    assert "features.0.weight" in td.state_dict()
    assert [m.shape[-1] for m in td.stage_maps(td.pyramid(x))] == [1, 2, 4, 8, 16, 32]
    assert torch.equal(functional_call(td, dict(td.named_parameters()), (x,)), td(x))


class Reserved(nn.Module):
    """A network whose own layers have the names that a top-down network uses."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, 4, 3, padding=1)
        self.merge = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU())
        self.scales = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scales(self.merge(self.entry(x)).mean((2, 3)))


def test_names_that_clash_get_an_underscore() -> None:
    td = reverse(Reserved(), input_size=(3, 16, 16))
    assert {"entry_.weight", "merge_.0.weight", "scales_.weight"} <= set(td.state_dict())
    assert td(torch.randn(2, 3, 16, 16)).shape == (2, 2)


def test_mode_dtype_and_requires_grad_are_kept() -> None:
    model = torchvision.models.resnet18(num_classes=7).double().train()
    model.layer2[1].conv1.weight.requires_grad_(False)
    model.bn1.weight.requires_grad_(False)
    model.layer3[1].bn1.eval()
    td = reverse(model)
    assert {p.dtype for p in td.parameters()} == {torch.float64}
    assert [n for n, p in td.named_parameters() if not p.requires_grad] == ["layer2.1.conv1.weight"]
    assert td.training and not td.layer3[1].bn1.training and td.layer3[1].bn2.training
    assert not any(module.training for module in reverse(model.eval()).modules())


def test_meta_models_convert_without_weights() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    td = reverse(model)
    assert {p.device.type for p in td.parameters()} == {"meta"}
    assert td.report.input_size == (3, 224, 224)


def test_fresh_is_reproducible_and_keeps_nothing() -> None:
    model = zoo.nin_light()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(reverse(model, init="fresh").state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert not any((value == 7).any() for value in states[0].values())


def test_new_layers_are_drawn_in_the_networks_own_kind() -> None:
    """Glorot-uniform in NIN-light, He-normal in ResNet32 (SPEC 4): bounds and deviations from the definitions."""
    weight = reverse(zoo.nin_light(), init="fresh").merge["2"].conv.weight
    bound = (6 / (9 * 96 + 9 * 48)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    weight = reverse(zoo.resnet32()).merge["1"].conv.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)


def average(images: torch.Tensor, factor: int) -> torch.Tensor:
    """A downsampling of the user's own."""
    return nn.functional.avg_pool2d(images, factor, ceil_mode=True)


OPTIONS: list[dict[str, Any]] = [
    {"merge": "add"},
    {"merge": "concat"},
    {"upsample": "bilinear"},
    {"upsample": "transposed"},
    {"stem": "leading"},
    {"head_width": 80},
    *({"downsample": name} for name in ("blur", "blurpool", "pool", "none", "area", "laplacian")),
    {"downsample": average},
]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: "-".join(f"{k}-{v}" for k, v in option.items())[:30])
def test_every_option_trains(option: dict[str, object], images: torch.Tensor) -> None:
    for model in (zoo.resnet20(), torchvision_network("vgg11", 10), torchvision_network("mobilenet_v2", 10)):
        td = reverse(model, **option)
        td(images).square().sum().backward()
        assert all(p.grad is not None for p in td.parameters())


def test_a_downsampling_that_keeps_the_size_is_refused(images: torch.Tensor) -> None:
    class Same(nn.Module):
        def forward(self, images: torch.Tensor, factor: int) -> torch.Tensor:
            return images

    with pytest.raises(ConversionError):
        reverse(zoo.resnet20(), downsample=Same())(images)


def test_add_merge_is_a_sum() -> None:
    """With `merge="add"` and the other path silenced, a stage's map is the body's function of the sum."""
    td = reverse(zoo.lenet_fc(), merge="add").eval()
    assert not hasattr(td, "merge")
    levels = td.pyramid(torch.randn(1, 1, 28, 28))
    coarse = td.get_submodule("features.4")(levels[2])
    grown = nn.functional.interpolate(td.transition["2"](coarse), scale_factor=2)  # type: ignore[operator]
    expected = td.get_submodule("features.2")(grown + td.entry["2"](levels[1]))  # type: ignore[operator]
    torch.testing.assert_close(td.stage_maps(levels)[1], expected)


class BlockLast(nn.Module):
    """Plain stages by stride, 3x3 pooling and a stride of 4, and one residual block at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 4, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(6, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3)
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, stride=4, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.last = nn.Conv2d(12, 12, 3, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.pool(self.wide(self.stem(x))))
        return self.fc((x + self.last(x).relu()).mean((2, 3)))


def test_what_stands_before_a_late_block_is_no_stem() -> None:
    """A stem of all but the last stage would leave nothing to reverse: the network is read as a plain one."""
    td = reverse(BlockLast(), input_size=(3, 96, 96))
    assert td.scales == (1, 2, 6, 24)
    assert [row.top_down.units for row in td.report.stages] == [0, 1, 0, 2, 0]
    assert verify(BlockLast(), input_size=(3, 96, 96)).passed
