"""`num_classes` and `in_chans` of `reverse`: a new classifier, entries for other images, everything else as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from td_compiler import ConversionError, reverse, verify, zoo
from td_compiler.emission import emit_source

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {  # and the tensors of its classifier
    "resnet18": (torchvision.models.resnet18, ("fc.",)),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, ("classifier.3.",)),
    "squeezenet1_0": (torchvision.models.squeezenet1_0, ("classifier.1.",)),
    "vgg11": (torchvision.models.vgg11, ("classifier.6.",)),
    "lenet_fc": (zoo.ZOO["lenet_fc"], ("head.conv.", "head.norm.")),
    "resnet32": (zoo.ZOO["resnet32"], ("fc.",)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_classifier_and_what_reads_images_is_new(name: str) -> None:
    torch.manual_seed(0)
    make, classifier = NETWORKS[name]
    model = make()
    before = reverse(model)
    channels = 5
    td = reverse(model, num_classes=7, in_chans=channels)
    _, height, width = before.report.input_size
    assert td.report.input_size == (channels, height, width) and td.num_classes == 7
    state, source = td.state_dict(), model.state_dict()
    assert state.keys() == before.state_dict().keys()
    for path, value in before.state_dict().items():
        new = state[path]
        if path.startswith(classifier):
            assert new.dim() == 0 or new.shape == (7, *value.shape[1:]), path
        elif new.shape != value.shape:
            assert new.shape == (value.shape[0], channels, *value.shape[2:]), path
            assert value.shape[1] == before.report.input_size[0], path
        elif path in source and source[path].shape == value.shape:
            assert torch.equal(new, source[path]), path
    images = torch.randn(2, channels, height // 2 * 2 + 1, width)
    scores = td.eval()(images)
    assert scores.shape == (2, 7) and scores.isfinite().all()
    namespace: dict[str, Any] = {"__name__": "emitted"}
    exec(emit_source(td, class_name="Net", origin="test"), namespace)
    network = namespace["Net"]()
    network.load_state_dict(td.state_dict())
    torch.testing.assert_close(network.eval()(images), scores, rtol=1e-4, atol=1e-5)
    parameters = sum(row.top_down.parameters for row in td.report.stages)
    assert parameters == sum(p.numel() for p in td.parameters())


def test_a_new_classifier_is_drawn_as_the_sources() -> None:
    torch.manual_seed(0)
    td = reverse(torchvision.models.mobilenet_v3_small(), num_classes=50)  # N(0, 0.01), zero biases
    last = td.get_submodule("classifier.3")
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.05) and not last.bias.any()  # type: ignore[operator]
    td.reset_classifier(60)
    last = td.get_submodule("classifier.3")
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.05) and not last.bias.any()  # type: ignore[operator]
    other = reverse(torchvision.models.resnet18(), num_classes=50).get_submodule("fc")
    assert other.weight.abs().max().item() == pytest.approx(1 / math.sqrt(64), rel=0.01)  # type: ignore[operator]


def test_the_sources_own_numbers_change_nothing() -> None:
    model = zoo.ZOO["resnet32"]()
    torch.manual_seed(0)
    plain = reverse(model).state_dict()
    torch.manual_seed(0)
    same = reverse(model, num_classes=10, in_chans=3).state_dict()
    assert all(torch.equal(same[path], value) for path, value in plain.items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0", "resnet32"])
def test_no_classes_give_what_the_classifier_would_read(name: str) -> None:
    torch.manual_seed(0)
    make, _ = NETWORKS[name]
    model = make().eval()
    td, full = reverse(model, num_classes=0), reverse(model)
    assert td.num_classes == 0
    full.load_state_dict(td.state_dict(), strict=False)  # the new layers of both
    images = torch.randn(2, 3, 64, 64)
    features = td(images)
    assert features.shape[0] == 2 and features.dim() == 2
    if name != "squeezenet1_0":  # its classifier works on the map, before the pooling
        maps = full.forward_features(images)
        torch.testing.assert_close(features, full.forward_head(maps, pre_logits=True).flatten(1))


@pytest.mark.parametrize("options", [{"num_classes": 7}, {"in_chans": 2}, {"num_classes": 0}])
def test_verify_knows_what_was_asked_for(options: dict[str, int]) -> None:
    for name in ("lenet_fc", "resnet32"):
        verification = verify(zoo.ZOO[name](), **options)
        assert verification.passed, str(verification)


class Normalising(nn.Sequential):
    """Subtracts the mean of three channels from its images; its scores are an average of its last map."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.register_buffer("mean", torch.rand(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = super().forward(images - self.mean)  # type: ignore[operator]
        return scores


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"in_chans": 1}, "before the first layer is for 3 channels"),
        ({"in_chans": 0}, "in_chans=0 must be a positive number"),
        ({"num_classes": -1}, "num_classes=-1 must be a number of classes"),
        ({"num_classes": True}, "num_classes=True must be a number of classes"),
        ({"num_classes": 5}, "no linear layer or convolution of the head makes the scores"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        reverse(Normalising(), input_size=(3, 32, 32), **options)
