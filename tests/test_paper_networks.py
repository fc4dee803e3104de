"""The compiler reaches the authors' top-down networks exactly: sizes, layers, places, outputs (SPEC 4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from td_compiler import TopDownNet, reverse, zoo
from td_compiler.benchmarks.experiments.speed.handwritten import handwritten
from td_compiler.options import Filters
from tests.support.reference import INPUT_SIZES, authors_array, load_reference_weights, reference_images

TRAINABLE = {
    ("lenet_fc", "mirror"): 14_452,
    ("lenet_fc", "uniform"): 23_486,
    ("lenet_fc", "reversed"): 57_846,
    ("nin_light", "mirror"): 212_670,
    ("nin_light", "uniform"): 214_734,
    ("nin_light", "reversed"): 214_206,
    ("nin", "mirror"): 3_368_478,
    ("nin", "uniform"): 3_397_470,
    ("nin", "reversed"): 3_388_446,
    ("resnet32", "mirror"): 528_042,
    ("resnet32", "uniform"): 319_626,
    ("resnet32", "reversed"): 563_274,
}


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def convolutions(model: nn.Module, run: object) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Weight shape and output map size of every convolution that runs, sorted."""
    seen = []
    hooks = [
        module.register_forward_hook(
            lambda m, _, output: seen.append((tuple(m.weight.shape), tuple(output.shape[-2:])))
        )
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    run()  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return sorted(seen)


@pytest.mark.parametrize(("name", "filters"), TRAINABLE)
def test_parameter_counts(name: str, filters: Filters) -> None:
    assert trainable(reverse(zoo.ZOO[name](), filters=filters)) == TRAINABLE[name, filters]


def test_parameter_count_of_the_imagenette_network() -> None:
    assert trainable(reverse(zoo.resnet18_light(), stem="leading")) == 4_966_538


@pytest.mark.parametrize(("name", "filters"), TRAINABLE)
def test_convolutions_and_their_places(name: str, filters: Filters) -> None:
    """Against the network written out by hand: every convolution has the same shape and map size."""
    images = reference_images(name)
    td = reverse(zoo.ZOO[name](), filters=filters).eval()
    hand = handwritten(name, filters).eval()
    with torch.no_grad():
        levels = td.pyramid(images)
        assert convolutions(td, lambda: td(images)) == convolutions(hand, lambda: hand(levels))


@pytest.mark.parametrize(("name", "filters"), TRAINABLE)
def test_outputs_are_the_authors(name: str, filters: Filters) -> None:
    td = load_reference_weights(reverse(zoo.ZOO[name](), filters=filters))
    with torch.no_grad():
        output = td(reference_images(name)).softmax(1)
    torch.testing.assert_close(output, authors_array(f"{name}|{filters}"), atol=1e-6, rtol=0)


def test_outputs_of_the_imagenette_network_are_the_authors() -> None:
    td = load_reference_weights(reverse(zoo.resnet18_light(), stem="leading"))
    with torch.no_grad():
        output = td(reference_images("resnet18_light")).softmax(1)
    torch.testing.assert_close(output, authors_array("resnet18_light|mirror|leading"), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "filters"), TRAINABLE)
def test_handwritten_networks_agree_too(name: str, filters: Filters) -> None:
    """The witness itself is right: it puts out what the authors' code puts out."""
    hand = load_reference_weights(handwritten(name, filters))
    td: TopDownNet = reverse(zoo.ZOO[name](), filters=filters)
    with torch.no_grad():
        output = hand(td.pyramid(reference_images(name))).softmax(1)
    torch.testing.assert_close(output, authors_array(f"{name}|{filters}"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", INPUT_SIZES)
def test_trailing_and_leading_differ_only_with_a_stem_that_downsamples(name: str) -> None:
    trailing, leading = (reverse(zoo.ZOO[name](), stem=stem) for stem in ("trailing", "leading"))
    same = [p.shape for p in trailing.parameters()] == [p.shape for p in leading.parameters()]
    assert same == (name != "resnet18_light")


def test_head_width_widens_the_last_block() -> None:
    """The papers' remedy: 16 -> 32 filters in the last block, whose identity becomes a projection."""
    td = reverse(zoo.resnet32(), head_width=32)
    # by hand: last block 16 -> 32 -> 32 with projection, head on 32, in place of 16 -> 16 -> 16, head on 16
    block = 2 * 16 + (9 * 16 * 32 + 32) + 2 * 32 + (9 * 32 * 32 + 32) + (16 * 32 + 32)
    plain = 2 * 16 + 2 * (9 * 16 * 16 + 16) + 2 * 16
    assert trainable(td) == 528_042 - plain + block + (2 * 32 + 330) - (2 * 16 + 170)
    assert trainable(reverse(zoo.resnet32(), head_width=16)) == 528_042
