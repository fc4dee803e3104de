"""The papers' networks: their published sizes, and the authors' own outputs under equal weights (SPEC 4)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import fx, nn

from td_compiler.errors import ConversionError
from td_compiler.zoo import ZOO, resnet, resnet110
from tests.support.reference import INPUT_SIZES, authors_array, load_reference_weights, reference_images

PARAMETERS = {"lenet_fc": 7_670, "nin_light": 62_094, "nin": 969_822, "resnet32": 467_946, "resnet18_light": 2_799_114}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_papers(name: str) -> None:
    assert count(ZOO[name]()) == PARAMETERS[name]


@pytest.mark.parametrize("name", INPUT_SIZES)
def test_outputs_are_the_authors(name: str) -> None:
    model = load_reference_weights(ZOO[name]())
    with torch.no_grad():
        probabilities = model(reference_images(name)).softmax(dim=1)
    torch.testing.assert_close(probabilities, authors_array(f"{name}|bottom_up"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ZOO)
def test_protocol_options_and_odd_sizes(name: str) -> None:
    model = ZOO[name](num_classes=7, in_channels=2).eval()
    assert model.input_size[0] == 2
    height, width = (side + 3 for side in model.input_size[1:])
    traced = fx.symbolic_trace(model)
    images = torch.rand(2, 2, height, width + 2)
    torch.testing.assert_close(traced(images), model(images), rtol=0, atol=0)
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize("depth", [8, 20, 26])
def test_depth_counts_weighted_layers(depth: int) -> None:
    model = resnet(depth)
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len([name for name in layers if not name.endswith("projection")]) == depth


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_named_depths(depth: int) -> None:
    assert count(ZOO[f"resnet{depth}"]()) == count(resnet(depth))


@pytest.mark.parametrize("depth", [-4, 2, 18, 33])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(ConversionError, match=f"not {depth}: take a depth such as"):
        resnet(depth)


@pytest.mark.parametrize(("name", "he"), [("resnet32", True), ("nin", False)])
def test_initialisation_is_he_or_glorot(name: str, he: bool) -> None:
    """He-normal: variance 2 / fan-in. Glorot-uniform: variance 2 / (fan-in + fan-out), within sqrt(3) deviations."""
    torch.manual_seed(0)
    model = ZOO[name]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_in = module.in_channels * math.prod(module.kernel_size)
            fan_out = module.out_channels * math.prod(module.kernel_size)
            variance = 2 / fan_in if he else 2 / (fan_in + fan_out)
            assert module.weight.var().item() == pytest.approx(variance, rel=0.1)
            largest = module.weight.abs().max().item() / math.sqrt(variance)
            assert largest > 3 if he else largest <= math.sqrt(3) + 1e-6
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert module.bias is not None and not module.bias.any()


def test_norms_follow_the_paper() -> None:
    for name, model in ((name, factory()) for name, factory in ZOO.items()):
        expected = (1e-5, 0.1) if name.startswith("resnet") else (1e-3, 0.01)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert {(norm.eps, norm.momentum) for norm in norms} == {expected}


def test_initialise_redraws_one_layer_and_survives_a_copy() -> None:
    model = copy.deepcopy(ZOO["resnet20"]())
    conv, norm = nn.Conv2d(16, 64, 3), nn.BatchNorm2d(8)
    nn.init.constant_(conv.weight, 9.0)
    nn.init.constant_(norm.weight, 9.0)
    norm(torch.rand(4, 8, 2, 2))
    for module in (conv, norm, nn.ReLU(), nn.Sequential(conv)):
        model.initialise(module)
    assert conv.weight.var().item() == pytest.approx(2 / (16 * 9), rel=0.1)
    assert conv.bias is not None and not conv.bias.any()
    assert (norm.weight == 1).all()
    assert norm.running_mean is not None and not norm.running_mean.any()


def test_networks_build_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = resnet110()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
