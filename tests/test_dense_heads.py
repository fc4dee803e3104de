"""`task="segmentation"`: a classifier of pixels on the last map, for classifiers and for bare encoders."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from typer.testing import CliRunner

from td_compiler import ConversionError, TopDownNet, reverse, verify, zoo
from td_compiler.cli import app as cli
from td_compiler.passes.replace_head import HEAD


def unit(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


class Encoder(nn.Module):
    """Two scales, no head: the output is the coarse map."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.pool, self.coarse = unit(1, 4), nn.MaxPool2d(2), unit(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.coarse(self.pool(self.fine(x)))


class HandWritten(nn.Module):
    """The top-down network of `Encoder` with five classes of pixels, written by hand from SPEC 2."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.transition = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.entry = unit(1, 4)
        self.merge = unit(8, 4)
        self.fine = unit(4, 4)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, images: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
        x = self.transition(self.coarse(half))
        x = F.interpolate(x, size=images.shape[-2:], mode="nearest")
        e = self.entry(images)
        return self.head(self.fine(self.merge(torch.cat([x + e, e], 1))))


def test_an_encoder_without_a_head_against_one_written_by_hand() -> None:
    torch.manual_seed(0)
    td = reverse(Encoder(), task="segmentation", num_classes=5, input_size=(1, 16, 16)).double().eval()
    own = HandWritten().double().eval()
    for name, theirs in (
        *(("coarse", "coarse"), ("transition", "transition.1"), ("entry", "entry.1")),
        *(("merge", "merge.1"), ("fine", "fine"), ("head", HEAD)),
    ):
        values = list(td.get_submodule(theirs).state_dict().values())
        state = own.get_submodule(name).state_dict()
        own.get_submodule(name).load_state_dict(dict(zip(state, values, strict=True)))
    for size in ((16, 16), (13, 18)):
        images = torch.rand(2, 1, *size, dtype=torch.float64)
        expected = own(images, td.pyramid(images)[1])
        assert expected.shape == (2, 5, *size)
        torch.testing.assert_close(td(images), expected, rtol=1e-10, atol=1e-12)
    assert sum(p.numel() for p in td.parameters()) == sum(p.numel() for p in own.parameters())


def test_the_stages_are_those_of_the_classifier() -> None:
    torch.manual_seed(0)
    source = zoo.resnet20().eval()
    torch.manual_seed(1)
    classifier = reverse(source)
    torch.manual_seed(1)
    pixels = reverse(source, task="segmentation", num_classes=7)
    images = torch.randn(2, 3, 31, 35)
    for one, other in zip(
        classifier.stage_maps(classifier.pyramid(images)),
        pixels.stage_maps(pixels.pyramid(images)),
        strict=True,
    ):
        assert torch.equal(one, other)
    # A pre-activation network ends in sums: its last norm and activation stay, pooling and classifier go.
    x = classifier.get_submodule("norm")(classifier.stage_maps(classifier.pyramid(images))[-1]).relu()
    assert torch.equal(pixels(images), pixels.get_submodule(HEAD)(x))
    assert not hasattr(pixels, "fc") and not hasattr(pixels, "pool")
    assert pixels.report.notes[-1].endswith(
        "scores 7 classes for every pixel, in place of the source's classifier (fc)."
    )
    assert pixels.report.stages[-1].bottom_up is not None and pixels.report.stages[-1].bottom_up.parameters == 650 + 128


@pytest.mark.parametrize(
    ("make", "size", "filters"),
    [
        (Encoder, (1, 16, 16), "reversed"),
        (zoo.nin_light, None, "uniform"),
        (zoo.resnet20, None, "reversed"),
        (torchvision.models.resnet18, (3, 32, 32), "mirror"),
        (lambda: torchvision.models.mobilenet_v2().features, (3, 32, 32), "mirror"),
        (lambda: torchvision.models.vgg11().features, (3, 32, 32), "reversed"),
    ],
)
def test_families_verify(make: Callable[[], nn.Module], size: tuple[int, int, int] | None, filters: str) -> None:
    with torch.device("meta"):
        model = make()
    result = verify(model, task="segmentation", num_classes=3, input_size=size, filters=filters)
    assert result.passed, str(result)


def test_an_encoder_keeps_a_last_expansion_that_no_pooling_follows() -> None:
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v2()
    whole, encoder = (
        reverse(source, task="segmentation", num_classes=3, input_size=(3, 64, 64))
        for source in (model, model.features)
    )
    assert not any(name.startswith("features.18") for name, _ in whole.named_modules())
    assert isinstance(encoder.get_submodule("18.0"), nn.Conv2d)


def test_verify_says_no_to_another_number_of_classes() -> None:
    source = Encoder()
    td = reverse(source, task="segmentation", num_classes=3, input_size=(1, 16, 16))
    failed = verify(source, td, task="segmentation", num_classes=4, input_size=(1, 16, 16)).failures
    assert [check.name for check in failed] == ["the output has the right shape"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "segmentation"}, "num_classes=None must be a positive number for task='segmentation'"),
        ({"task": "segmentation", "num_classes": 0}, "num_classes=0 must be a positive number"),
        ({"num_classes": 5}, "as an encoder for task='segmentation'"),  # which is no classifier of other classes
        ({"task": "segmentatio"}, "Did you mean 'segmentation'"),
        ({}, "as an encoder for task='segmentation'"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        reverse(Encoder(), input_size=(1, 16, 16), **options)


def test_a_layer_of_the_name_of_the_new_head_keeps_its_place() -> None:
    class Named(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(HEAD, self._modules.pop("fine"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.coarse(self.pool(self.get_submodule(HEAD)(x)))

    td = reverse(Named(), task="segmentation", num_classes=5, input_size=(1, 16, 16))
    assert td(torch.zeros(1, 1, 16, 16)).shape == (1, 5, 16, 16)
    assert isinstance(td.get_submodule(HEAD), nn.Conv2d)


def test_the_command_line(tmp_path: Path) -> None:
    options = ["--task", "segmentation", "--num-classes", "12", "--seed", "1"]
    out = tmp_path / "net.py"
    result = CliRunner().invoke(cli.app, ["convert", "zoo:lenet_fc", *options, "-o", str(out), "--weights"])
    assert result.exit_code == 0, result.output
    spec = importlib.util.spec_from_file_location("net", out)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.LenetFcTD()
    from safetensors.torch import load_file

    network.load_state_dict(load_file(out.with_suffix(".safetensors")))
    torch.manual_seed(1)
    td = reverse(zoo.lenet_fc(), task="segmentation", num_classes=12)
    images = torch.rand(2, 1, 29, 30)
    assert isinstance(td, TopDownNet)
    assert torch.equal(network.eval()(images), td.eval()(images))
    assert "--task segmentation --num-classes 12" in out.read_text()
