"""A window is refined as the whole network would, where its border is far; with all of the image nothing changes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from td_compiler import ConversionError, TopDownNet, reverse, zoo
from td_compiler.network.refine import Refined, Window, contrast, crop


def network(model: nn.Module, **options: Any) -> TopDownNet:
    """The top-down network in float64 and evaluation mode, its norms with statistics of some images."""
    torch.manual_seed(0)
    td = reverse(model.double(), **options).train()
    channels, height, width = td.report.input_size
    with torch.no_grad():
        td(torch.randn(4, channels, height, width, dtype=torch.float64))
    return td.eval()


@pytest.fixture(scope="module")
def lenet() -> TopDownNet:
    return network(zoo.lenet_fc(), input_size=(1, 64, 64))


def spots(size: tuple[int, int], *places: tuple[int, int]) -> torch.Tensor:
    """Images (N, 1, *size) of noise with a bright square of 8x8 pixels at each place."""
    images = 0.1 * torch.rand(len(places), 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for image, (top, left) in zip(images, places, strict=True):
        image[:, top : top + 8, left : left + 8] += 1
    return images


def test_the_whole_image_is_the_network_itself(lenet: TopDownNet) -> None:
    images = spots((61, 50), (3, 4), (20, 30))
    assert torch.equal(Refined(lenet, 1.0)(images), lenet(images))
    assert Refined(lenet, 1.0).boxes(images).tolist() == [[0, 0, 50, 61]] * 2


def test_crop_is_slicing() -> None:
    maps = torch.randn(3, 2, 7, 9, dtype=torch.float64, requires_grad=True)
    window = Window(torch.tensor([0, 2, 4]), torch.tensor([5, 0, 1]), (3, 4))
    expected = torch.stack([maps[0, :, 0:3, 5:9], maps[1, :, 2:5, 0:4], maps[2, :, 4:7, 1:5]])
    assert torch.equal(crop(maps, window), expected)
    assert torch.autograd.gradcheck(lambda m: crop(m, window), (maps,))
    over = crop(maps, Window(torch.tensor([5] * 3), torch.tensor([0] * 3), (3, 9)))
    assert torch.equal(over, torch.stack([maps[:, :, 5], maps[:, :, 6], maps[:, :, 6]], 2))


@pytest.mark.parametrize("patch", [0.25, 0.5, 0.7])
def test_the_window_holds_what_stands_out(lenet: TopDownNet, patch: float) -> None:
    """Windows begin on the coarse grid, have the asked size, and the salient square is in them."""
    places = [(0, 0), (30, 12), (56, 56), (17, 41)]
    boxes = Refined(lenet, patch).boxes(spots((64, 64), *places))
    for (top, left), (x1, y1, x2, y2) in zip(places, boxes.tolist(), strict=True):
        assert x1 % 4 == y1 % 4 == 0 and x2 - x1 == y2 - y1 == 4 * -(-16 * patch // 1)
        assert y1 <= top and top + 8 <= y2 and x1 <= left and left + 8 <= x2


def test_the_window_by_hand() -> None:
    """The place of the largest box sum, found by trying all."""
    torch.manual_seed(3)
    td = network(zoo.lenet_fc(), input_size=(1, 40, 32))
    images = torch.randn(3, 1, 40, 32, dtype=torch.float64)
    coarse = td.stage_maps(td.pyramid(images))[0]
    for image, box in enumerate(Refined(td, 0.4).boxes(images).tolist()):
        spread = contrast(coarse)[image]
        sums = {(i, j): spread[i : i + 4, j : j + 4].sum().item() for i in range(7) for j in range(5)}
        top, left = max(sums, key=lambda place: sums[place])
        assert box == [4 * left, 4 * top, 4 * left + 16, 4 * top + 16]


CASES = [(zoo.lenet_fc, 4, 14), (zoo.lenet_fc, 2, 8), (lambda: zoo.resnet20(in_channels=1), 4, 28)]


@pytest.mark.parametrize(("maker", "from_scale", "reach"), CASES)
def test_far_from_its_border_a_window_is_what_the_network_makes_there(maker: Any, from_scale: int, reach: int) -> None:
    td = network(maker(), input_size=(1, 128, 128))
    images = spots((128, 128), (8, 80), (70, 32))
    refined = Refined(td, 0.5, from_scale=from_scale)
    with torch.no_grad():
        part, whole = refined.refined_map(images), td.stage_maps(td.pyramid(images))[-1]
    for image, (x1, y1, x2, y2) in enumerate(refined.boxes(images).tolist()):
        expected = whole[image, :, y1:y2, x1:x2]
        assert part[image].shape == expected.shape == (whole.shape[1], 64, 64)
        inner = (slice(None), slice(reach, -reach), slice(reach, -reach))
        torch.testing.assert_close(part[image][inner], expected[inner], rtol=1e-10, atol=1e-10)
        assert not torch.allclose(part[image], expected, rtol=1e-6)  # its border does not see what is beside it


def test_images_of_any_size(lenet: TopDownNet) -> None:
    """Where the coarse grid does not divide the image, a window reaches over the border, a box does not."""
    images = spots((61, 47), (53, 39), (0, 20))
    refined = Refined(lenet, 0.5)
    assert refined(images).shape == (2, 10)
    assert refined.boxes(images)[0].tolist() == [24, 32, 47, 61]


def test_trains_and_copies() -> None:
    """Every layer gets a gradient; wrappers share the network; copies compute the same."""
    td = reverse(torchvision.models.resnet18(num_classes=5), input_size=(3, 64, 64))
    refined = Refined(td, 0.5, from_scale=8).train()
    images = torch.randn(2, 3, 65, 60)
    refined(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in refined.parameters())
    assert {id(p) for p in refined.parameters()} == {id(p) for p in td.parameters()}
    refined.eval()
    with torch.no_grad():
        expected = refined(images)
        for twin in (copy.deepcopy(refined), pickle.loads(pickle.dumps(refined))):
            assert torch.equal(twin(images), expected)
        assert not torch.allclose(td(images), expected)


def test_cost_falls_with_the_area() -> None:
    """By torch's own count: the finer stages and the head's convolutions cost a quarter, the coarse one as before."""
    with torch.device("meta"):
        td, images = reverse(zoo.nin_light(), input_size=(1, 64, 64)), torch.empty(1, 1, 64, 64)

    def count(module: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(images)
        return counter.get_total_flops()

    coarse = 2 * td.report.stages[-2].top_down.macs
    whole, half = count(td), count(Refined(td, 0.5, from_scale=4))
    assert half == pytest.approx(coarse + (whole - coarse) / 4, rel=0.01)  # but for the pyramid


def test_the_default_scale_is_affordable() -> None:
    with torch.device("meta"):
        assert Refined(reverse(torchvision.models.resnet50())).from_scale == 32
        assert Refined(reverse(torchvision.models.vgg11())).from_scale == 16


class Flattens(nn.Module):
    """A network whose classifier reads every pixel of its last map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.scores = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.first(x).relu(), 2)
        return self.scores(nn.functional.max_pool2d(self.second(x).relu(), 2).flatten(1))


def test_a_head_that_flattens_reads_the_window_averaged() -> None:
    refined = Refined(reverse(Flattens(), input_size=(1, 32, 32)))
    assert refined(torch.rand(2, 1, 32, 32)).shape == (2, 5)


def test_what_cannot_be_refined_is_refused(lenet: TopDownNet) -> None:
    with pytest.raises(ConversionError, match="not class scores"):
        Refined(reverse(zoo.lenet_fc(), task="segmentation", num_classes=3))
    with pytest.raises(ConversionError, match="no top-down network"):
        Refined(zoo.lenet_fc())
    with pytest.raises(ConversionError, match=r"patch=1\.5"):
        Refined(lenet, 1.5)
    with pytest.raises(ConversionError, match="from_scale=1 is not one of 2, 4"):
        Refined(lenet, from_scale=1)
