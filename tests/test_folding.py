"""Folded convolutions compute what upsampling, merging and convolving do, in float64, gradients included."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from td_compiler import TopDownNet, reverse, zoo
from td_compiler.layers.folding import CombinedConv2d, ConcatConv2d, FoldedConv2d, UpsampledConv2d

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def repeated(x: Tensor, factor: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Nearest upsampling by definition: every pixel becomes a block; what the image does not have is cut off."""
    return x.repeat_interleave(factor[0], 2).repeat_interleave(factor[1], 3)[..., : size[0], : size[1]]


def gradients(value: Tensor, inputs: list[Any]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    return torch.autograd.grad((value * weights).sum(), inputs)


def assert_same(found: Tensor, expected: Tensor, inputs: list[Any]) -> None:
    torch.testing.assert_close(found, expected, **EXACT)
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_upsampled(kernel: int, factor: int, groups: int) -> None:
    for padding in {kernel // 2, 0, kernel - 1}:
        conv = UpsampledConv2d(4, 8, kernel, factor, padding=padding, groups=groups)
        x = torch.randn(2, 4, 5, 7, requires_grad=True)
        image = torch.empty(2, 3, 5 * factor, 7 * factor)
        large = repeated(x, (factor, factor), (5 * factor, 7 * factor))
        expected = F.conv2d(large, conv.weight, conv.bias, padding=padding, groups=groups)
        assert_same(conv(x, image), expected, [x, conv.weight, conv.bias])


@pytest.mark.parametrize("kernel", [(1, 3), (5, 2)])
@pytest.mark.parametrize("factor", [(2, 4), (1, 3)])
def test_upsampled_unevenly(kernel: tuple[int, int], factor: tuple[int, int]) -> None:
    conv = UpsampledConv2d(3, 2, kernel, factor, padding=(kernel[0] // 2, kernel[1] // 2), bias=False)
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    size = (4 * factor[0], 5 * factor[1])
    expected = F.conv2d(repeated(x, factor, size), conv.weight, padding=conv.padding)
    assert_same(conv(x, torch.empty(2, 1, *size)), expected, [x, conv.weight])


@pytest.mark.parametrize("size", [(9, 14), (10, 13), (9, 13)])
def test_sizes_that_the_factor_does_not_divide(size: tuple[int, int]) -> None:
    """What a block has beyond the border is not there: it may not reach into the convolution."""
    x, e = torch.randn(2, 4, 5, 7, requires_grad=True), torch.randn(2, 4, *size, requires_grad=True)
    large = repeated(x, (2, 2), size)
    conv = UpsampledConv2d(4, 6, 5, 2, padding=2)
    assert_same(conv(x, e), F.conv2d(large, conv.weight, conv.bias, padding=2), [x, conv.weight])
    merge = CombinedConv2d(8, 4, 3, 2, padding=1)
    expected = F.conv2d(torch.cat([large + e, e], 1), merge.weight, merge.bias, padding=1)
    assert_same(merge(x, e), expected, [x, e, merge.weight])


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("form", [CombinedConv2d, ConcatConv2d])
def test_merges(kernel: int, factor: int, form: type[ConcatConv2d]) -> None:
    padding = kernel // 2
    conv = form(8, 5, kernel, factor, padding=padding)
    x = torch.randn(2, 4, 3, 5, requires_grad=True)
    e = torch.randn(2, 4, 3 * factor, 5 * factor, requires_grad=True)
    large = repeated(x, (factor, factor), (3 * factor, 5 * factor))
    joined = torch.cat([large + e, e] if form is CombinedConv2d else [large, e], 1)
    expected = F.conv2d(joined, conv.weight, conv.bias, padding=padding)
    assert_same(conv(x, e), expected, [x, e, conv.weight, conv.bias])


def plain(conv: FoldedConv2d, x: Tensor, image: Tensor) -> Tensor:
    return F.conv2d(repeated(x, (2, 2), (8, 8)), conv.weight, conv.bias, padding=1)


def added(conv: FoldedConv2d) -> None:
    with torch.no_grad():
        conv.weight.add_(1)


def replaced(conv: FoldedConv2d) -> None:
    conv.weight = nn.Parameter(torch.randn_like(conv.weight))


def loaded(conv: FoldedConv2d) -> None:
    conv.load_state_dict({name: torch.randn_like(value) for name, value in conv.state_dict().items()})


def trained(conv: FoldedConv2d) -> None:
    conv.train()
    conv(torch.randn(2, 4, 4, 4), torch.empty(2, 3, 8, 8)).sum().backward()
    conv.weight.data -= conv.weight.grad  # past autograd, as some optimisers write
    conv.eval()


def cast(conv: FoldedConv2d) -> None:
    conv.float().double()


@pytest.mark.parametrize("change", [added, replaced, loaded, trained, cast])
def test_kept_kernels_follow_the_weight(change: Callable[[FoldedConv2d], None]) -> None:
    conv = UpsampledConv2d(4, 6, 3, 2, padding=1).eval()
    x, image = torch.randn(2, 4, 4, 4), torch.empty(2, 3, 8, 8)
    with torch.no_grad():
        conv(x, image)
    change(conv)
    with torch.no_grad():
        torch.testing.assert_close(conv(x, image), plain(conv, x, image), **EXACT)


def test_kernels_are_kept_where_nothing_changes() -> None:
    conv = UpsampledConv2d(4, 6, 3, 2, padding=1).eval()
    with torch.no_grad():
        first = conv.kernels()
        assert conv.kernels()[0] is first[0]
    assert conv.kernels()[0] is not first[0], "a gradient could be wanted here"
    with torch.inference_mode():
        x = torch.randn(2, 4, 4, 4)
        torch.testing.assert_close(conv(x, torch.empty(2, 3, 8, 8)), plain(conv, x, x), **EXACT)


@pytest.mark.parametrize("first", [True, False])
def test_kernels_under_autocast_are_not_kept_for_later(first: bool) -> None:
    conv = UpsampledConv2d(4, 6, 3, 2, padding=1).eval().float()
    x, image = torch.randn(2, 4, 4, 4, dtype=torch.float32), torch.empty(2, 3, 8, 8)
    for is_on in (first, not first):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            found = conv(x, image)
        assert found.dtype == (torch.bfloat16 if is_on else torch.float32)
        near = {"rtol": 2e-2, "atol": 2e-2} if is_on else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(found.float(), plain(conv, x, image), **near)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda conv: pickle.loads(pickle.dumps(conv))])
def test_kept_kernels_stay_behind_in_a_copy(duplicate: Callable[[FoldedConv2d], FoldedConv2d]) -> None:
    conv = UpsampledConv2d(4, 6, 3, 2, padding=1).eval()
    x, image = torch.randn(2, 4, 4, 4), torch.empty(2, 3, 8, 8)
    with torch.no_grad():
        conv(x, image)
        conv.weight.data.mul_(2)  # which the kept kernels do not see, but the copy must
        copied = duplicate(conv)
        torch.testing.assert_close(copied(x, image), plain(conv, x, image), **EXACT)


def small_vgg() -> nn.Module:
    layers = torchvision.models.vgg.make_layers([8, "M", 16, 16, "M", 16])
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], set[str]]] = {
    "lenet_fc": (zoo.lenet_fc, {}, {"merge.2.conv", "merge.1.conv"}),
    "nin_light, concat": (zoo.nin_light, {"merge": "concat"}, {"merge.2.conv", "merge.1.conv"}),
    "resnet32": (zoo.resnet32, {}, {"group2.0.conv1", "group1.0.conv1"}),
    "resnet10": (
        lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7),
        {"input_size": (3, 32, 32)},
        {"layer1.0.conv1", "merge.2.conv", "merge.1.conv"},
    ),
    "vgg, uniform": (small_vgg, {"filters": "uniform", "input_size": (3, 32, 32)}, {"merge.2.conv", "merge.1.conv"}),
    "mobilenet": (
        lambda: torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=7),
        {"input_size": (3, 32, 32)},
        {"merge.8.conv", "merge.4.conv", "merge.2.conv", "merge.1.conv"},
    ),
    "none with add": (zoo.lenet_fc, {"merge": "add"}, set()),
}  # fmt: skip


def folded(td: TopDownNet) -> set[str]:
    return {path for path, module in td.named_modules() if isinstance(module, FoldedConv2d)}


@pytest.mark.parametrize("name", NETWORKS)
def test_fast_network_is_the_plain_one(name: str) -> None:
    make, options, sites = NETWORKS[name]
    source = make()
    fast, plain = (reverse(source, fast=fast, **options) for fast in (True, False))
    assert folded(fast) == sites
    assert not folded(plain)
    assert [(n, p.shape) for n, p in fast.state_dict().items()] == [(n, p.shape) for n, p in plain.state_dict().items()]
    plain.load_state_dict(fast.state_dict())
    channels, height, width = fast.report.input_size
    for size in ((height, width), (height + 1, width - 1)):
        images = torch.randn(2, channels, *size, requires_grad=True)
        found, expected = fast.eval()(images), plain.eval()(images)
        torch.testing.assert_close(found, expected, **EXACT)
        leaves = [images, *fast.parameters()], [images, *plain.parameters()]
        grads = [torch.autograd.grad(v.square().sum(), p) for v, p in zip((found, expected), leaves, strict=True)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10 * max(1.0, other.abs().max().item()))


def test_a_folded_network_computes_fewer_products() -> None:
    fast, plain = reverse(zoo.nin()), reverse(zoo.nin(), fast=False)
    stage = next(i for i, row in enumerate(fast.report.stages) if row.name == "stage1")
    saved = plain.report.stages[stage].top_down.macs - fast.report.stages[stage].top_down.macs
    # of 18 taps in the 3x3 convolution of [x + e, e], x's 9 become 16 for 4 pixels
    assert saved == 192 * 192 * (9 - 4) * 32 * 32
    assert fast.report.stages[stage].top_down.activation_bytes < plain.report.stages[stage].top_down.activation_bytes


def is_channels_last(td: TopDownNet) -> bool:
    return not td.get_parameter("merge.1.conv.weight").is_contiguous()


def test_layout() -> None:
    """Channels last for many filters, not for few, not for groups, but always where the source has it."""
    assert is_channels_last(reverse(zoo.nin_light()))
    assert not is_channels_last(reverse(zoo.nin_light(), fast=False))
    assert not is_channels_last(reverse(zoo.lenet_fc()))
    assert is_channels_last(reverse(zoo.lenet_fc().to(memory_format=torch.channels_last)))
    assert not is_channels_last(reverse(torchvision.models.mobilenet_v2(), input_size=(3, 64, 64)))
    td = reverse(zoo.nin_light())
    assert td.stage_maps(td.pyramid(torch.randn(2, 1, 28, 28)))[-1].is_contiguous(memory_format=torch.channels_last)
