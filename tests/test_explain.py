"""`tdc explain`: heat maps are Grad-CAM, of the weights that were given, and the picture has a row a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from td_compiler import reverse, zoo
from td_compiler.report.heat_maps import draw_heat_maps, heat_maps
from tests.test_cli import folder, tdc

__all__ = ["folder"]  # a fixture


def test_grad_cam_is_that_of_captum() -> None:
    attr = pytest.importorskip("captum.attr")
    td = reverse(zoo.lenet_fc(), fast=False).eval()
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    found = heat_maps(td, images, labels=[3, 7])
    assert [each.label for each in found] == [3, 7]
    assert list(found[0].maps) == ["input", "stage4", "stage2", "stage1", "head"]
    torch.testing.assert_close(torch.stack([each.scores for each in found]), td(images).detach())
    # The last layer of the finest stage is a module of the network's own: captum can hook it.
    layer = td.get_submodule("features.0.act")
    theirs = attr.LayerGradCam(td, layer).attribute(images, torch.tensor([3, 7]), relu_attributions=True)
    for ours, cam in zip(found, theirs.detach(), strict=True):
        torch.testing.assert_close(ours.maps["stage1"], cam[0] / cam.max().clamp(min=1e-30), rtol=1e-4, atol=1e-5)


def test_the_network_s_own_class_is_explained_and_maps_are_of_the_image_s_size() -> None:
    source = zoo.lenet_fc().eval()
    images = torch.rand(3, 1, 28, 28)
    found = heat_maps(source, images)
    assert [each.label for each in found] == source(images).argmax(1).tolist()
    for each in found:
        assert all(heat.shape == (28, 28) and 0 <= heat.min() <= heat.max() <= 1 for heat in each.maps.values())
        assert each.probability == pytest.approx(float(each.scores.softmax(0).max()))
    figure = draw_heat_maps(list(images), ["a", "b", "a very long name of a photograph"], {"BU": found, "TD": found})
    assert len(figure.axes) == 6 * (1 + len(found[0].maps))
    assert [text.get_text() for text in figure.texts] == ["BU", "TD"] * 3


@pytest.fixture
def photo(folder: Path) -> Path:
    path = folder / "photo.png"
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(path)
    return path


def test_both_networks_of_given_weights(photo: Path) -> None:
    torch.manual_seed(7)
    source = zoo.lenet_fc()
    normalise = {"normalise.mean": torch.tensor(0.5).view(1, 1, 1), "normalise.deviation": torch.ones(1, 1, 1)}
    save_file({f"net.{name}": value for name, value in source.state_dict().items()} | normalise, "bu.safetensors")
    save_file(reverse(source).state_dict(), "td.safetensors")
    weights = ("--weights", "td.safetensors", "--bottom-up", "bu.safetensors")
    assert tdc("explain", "zoo:lenet_fc", "photo.png", *weights, "--class", "4") == "wrote lenet_fc_explained.png\n"
    with Image.open("lenet_fc_explained.png") as picture:
        assert picture.width > picture.height
    assert "exists: give --force" in tdc("explain", "zoo:lenet_fc", "photo.png", *weights, code=2)
    assert "wrote one.svg" in tdc(
        "explain", "zoo:lenet_fc", "photo.png", *weights[:2], "-o", "one.svg", "--mean", "0.5"
    )
    text = Path("one.svg").read_text()
    assert ">TD<" in text and ">BU<" not in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("photo.png", 2, "the heat map of an untrained network says nothing"),
        ("none.png --random-weights", 2, "there is no image none.png"),
        ("tiny.py --random-weights", 2, "tiny.py cannot be read as an image"),
        ("photo.png --weights no.pth", 2, "--weights no.pth: there is no such file"),
        ("photo.png --random-weights -o out.gif", 2, "OUT is a .png, .svg or .pdf file"),
        ("photo.png --random-weights --class 10", 1, "class 10 is none of the network's 10, from 0"),
        ("photo.png --random-weights --std 0", 2, "--std 0: give one number above 0, such as 0.5."),
    ],
)
def test_errors(photo: Path, words: str, code: int, said: str) -> None:
    assert said in tdc("explain", "zoo:lenet_fc", *words.split(), code=code)
    assert not list(photo.parent.glob("*explained*"))
