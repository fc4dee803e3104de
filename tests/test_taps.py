"""Taps: the maps between stages, seen from outside."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from td_compiler import ConversionError, reverse, zoo
from td_compiler.network.taps import tapped


class Functional(nn.Module):
    """Residual blocks whose additions and activations are no modules; the second block overwrites what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1, stride=2)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.maps(images)["head"].mean((2, 3)))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """By tap; each is a copy, made before anything can overwrite it."""
        x = self.stem(images)
        found = {"input": x.clone()}
        x = x + self.first(F.relu(x))
        found["stage1"] = x.clone()
        x = self.shortcut(x) + self.second(self.act(x))
        found["stage2"] = x.clone()
        found["head"] = F.relu(self.norm(x))
        return found


def seen(network: fx.GraphModule, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What a hook on every tap sees, and the class scores."""
    maps: dict[str, Tensor] = {}
    for name, tap in network.get_submodule("taps").named_children():
        tap.register_forward_hook(lambda _, __, output, name=name: maps.update({name: output}))
    with torch.no_grad():
        scores = network(images)
    return maps, scores


def test_taps_of_a_network_without_modules_at_its_stages_show_its_maps() -> None:
    model = Functional().eval()
    images = torch.randn(2, 3, 16, 16)
    maps, scores = seen(tapped(model, input_size=(3, 16, 16)), images)
    expected = model.maps(images)
    assert list(maps) == list(expected)
    for name, each in expected.items():
        torch.testing.assert_close(maps[name], each, rtol=0, atol=0)
    torch.testing.assert_close(scores, model(images), rtol=0, atol=0)
    assert model.act.inplace  # the model itself is as it was


def test_taps_of_a_plain_network_are_its_modules_outputs() -> None:
    model = zoo.lenet_fc().eval()
    images = torch.randn(2, 1, 28, 28)
    maps, _ = seen(tapped(model), images)
    expected = {"input": images, "stage1": model.features[:1](images), "stage2": model.features[:3](images)}
    expected |= {"stage4": model.features(images), "head": model.head(model.features(images))}
    assert list(maps) == list(expected)
    assert all(torch.equal(maps[name], each) for name, each in expected.items())


def test_taps_of_a_top_down_network_run_from_coarse_to_fine() -> None:
    td = reverse(zoo.lenet_fc()).eval()
    images = torch.randn(2, 1, 28, 28)
    maps, scores = seen(tapped(td), images)
    assert list(maps) == ["input", "stage4", "stage2", "stage1", "head"]
    stages = td.stage_maps(td.pyramid(images))
    assert all(torch.equal(maps[name], each) for name, each in zip(list(maps)[1:4], stages, strict=True))
    assert torch.equal(maps["input"], td.pyramid(images)[-1])  # without stem: the image at the coarsest scale
    layers = nn.Sequential(*(td.get_submodule(f"head.{name}") for name in ("conv", "norm", "act")))
    assert torch.equal(maps["head"], layers(stages[-1]))
    assert torch.equal(scores, td(images))


def plain() -> nn.Module:
    """A network whose last pooling is followed by nothing but the head: its coarsest scale has no layers."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 64, 10))


def norms_with_activations() -> nn.Module:
    """timm's norms that have an activation of their own are read as two layers."""
    return timm.create_model("mobilenetv3_small_050", num_classes=10)


@pytest.mark.parametrize("make", [plain, norms_with_activations])
def test_a_tapped_network_computes_the_same_with_the_same_parameters(make: Callable[[], nn.Module]) -> None:
    images = torch.randn(2, 3, 32, 32)
    model = make().eval()
    for network in (model, reverse(model, input_size=(3, 32, 32))):
        view = tapped(network, input_size=(3, 32, 32))
        assert torch.equal(seen(view, images)[1], network(images))
        assert {id(each) for each in view.parameters()} == {id(each) for each in network.parameters()}


def test_a_network_without_stages_has_no_taps() -> None:
    with pytest.raises(ConversionError, match="one resolution"):
        tapped(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), input_size=(3, 16, 16))
