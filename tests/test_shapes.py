"""What the meta device is told instead of asked: held against what torch returns for real tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler.capture.copying import copy_module
from td_compiler.capture.meta import ShapesOnly
from td_compiler.capture.shapes import returned

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
ACTIVATIONS = (F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid)


def image(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    made = torch.randn(shape or (2, 6, 5, 7)).to(dtype)
    return made.to(memory_format=torch.channels_last) if channels_last else made


def calls(x: Tensor) -> dict[str, Call]:
    channels = torch.rand(x.shape[1], dtype=x.dtype)
    gate, wider = x.mean((2, 3), keepdim=True), torch.cat([x, x], 1)
    return {
        **{function.__name__: (function, (x,), {}) for function in ACTIVATIONS},
        "batch norm": (F.batch_norm, (x, channels, channels, channels, channels), {}),
        "batch norm without statistics": (F.batch_norm, (x, None, None, channels, None, True), {}),
        "group norm": (F.group_norm, (x, 3, channels, channels), {}),
        "sum": (torch.add, (x, x), {}),
        "sum with a number": (torch.Tensor.add, (x, 2), {}),
        "gated": (torch.Tensor.mul, (x, gate), {}),
        "scaled": (torch.mul, (channels[:, None, None], x), {}),
        "gate first": (torch.mul, (gate, x), {}),
        "concatenated": (torch.cat, ([x, wider], 1), {}),
        "concatenated, by keyword": (torch.cat, ([x, x],), {"dim": -1}),
        "global pool": (F.adaptive_avg_pool2d, (x, (1, 1)), {}),
    }


def on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return type(value)(map(on_meta, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", calls(torch.empty(1, 6, 1, 1)))
def test_as_torch_computes_it(name: str, dtype: torch.dtype, channels_last: bool) -> None:
    function, args, kwargs = calls(image(dtype=dtype, channels_last=channels_last))[name]
    expected = function(*args, **kwargs)
    made = returned(function, on_meta(args), kwargs)
    assert made is not None and made.is_meta
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    assert made.stride() == expected.stride() or min(expected.shape[2:]) == 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_channels_at_the_end_as_torch_computes_it(order: tuple[int, ...]) -> None:
    """As where a map is permuted for a layer norm and linear layers."""
    x = image(2, 6, 5, 7).permute(order)
    features = x.shape[-1]
    some: list[Call] = [
        (F.layer_norm, (x, (features,), torch.ones(features)), {}),
        (F.layer_norm, (x, tuple(x.shape[2:])), {}),
        (F.linear, (x, torch.rand(4, features), torch.rand(4)), {}),
        (F.linear, (x[:, 0, 0], torch.rand(4, features)), {}),
        (F.gelu, (x,), {}),
        (torch.mul, (x, torch.rand(features)), {}),
    ]
    for function, args, kwargs in some:
        made, expected = returned(function, on_meta(args), kwargs), function(*args, **kwargs)
        assert made is not None
        assert (made.shape, made.stride()) == (expected.shape, expected.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_in_the_usual_format_as_torch_computes_them(dtype: torch.dtype) -> None:
    x, w, one = image(dtype=dtype), torch.rand(4, 6, 3, 3, dtype=dtype), torch.rand(8, 6, 1, 1, dtype=dtype)
    some: list[Call] = [
        (F.conv2d, (x, w), {}),
        (F.conv2d, (x, w, torch.rand(4, dtype=dtype), 2, 1), {}),
        (F.conv2d, (x, w[:, :3].contiguous()), {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1), "groups": 2}),
        (F.conv2d, (x, one), {}),
        (F.conv2d, (x[:, :, :1, :1].contiguous(), one), {}),
        (F.conv2d, (x[:, :1].contiguous(), w[:, :1].contiguous()), {"stride": 3}),
        (torch.sigmoid, (x,), {}),
        (torch.Tensor.tanh, (x,), {}),
        (torch.mean, (x, (2, 3)), {}),
        (torch.Tensor.mean, (x, [-2, -1]), {"keepdim": True}),
    ]
    for function, args, kwargs in some:
        made, expected = returned(function, on_meta(args), kwargs), function(*args, **kwargs)
        assert made is not None and made.is_meta
        assert (made.shape, made.dtype, made.stride()) == (expected.shape, expected.dtype, expected.stride())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Hardtanh])
def test_what_works_in_place_returns_its_input(activation: Callable[..., nn.Module]) -> None:
    x = image().to("meta")
    with torch.no_grad(), ShapesOnly():
        assert activation(inplace=True)(x) is x
        assert activation(inplace=False)(x) is not x


@pytest.mark.parametrize("function", [torch.Tensor.__iadd__, torch.Tensor.add_, torch.Tensor.__imul__])
def test_a_sum_in_place_is_its_first_operand(function: Callable[..., Any]) -> None:
    x, gate = image().to("meta"), torch.ones(2, 6, 1, 1, device="meta")
    for other in (image().to("meta"), gate, 2.0):
        assert returned(function, (x, other), {}) is x
    assert returned(function, (gate, x), {}) is None, "torch refuses to grow a tensor in place"
    assert returned(function, (x, image().double().to("meta")), {}) is None


def test_wrong_shapes_are_left_to_torch() -> None:
    x, five = image().to("meta"), torch.ones(5, device="meta")
    wrong: list[Call] = [
        (F.batch_norm, (x, five, five), {}),
        (F.batch_norm, (x, None, None, five, five, True), {}),
        (F.group_norm, (x, 4), {}),
        (F.group_norm, (x, 3, five), {}),
        (F.layer_norm, (x, (5,)), {}),
        (F.linear, (x, torch.ones(4, 5, device="meta")), {}),
        (torch.add, (x, image(2, 6, 5, 6).to("meta")), {}),
        (F.conv2d, (x, torch.ones(4, 5, 3, 3, device="meta")), {}),
        (F.conv2d, (x, torch.ones(4, 6, 9, 3, device="meta")), {}),
        (torch.cat, ([x, image(2, 6, 5, 6).to("meta")], 1), {}),
    ]
    for function, args, kwargs in wrong:
        with torch.no_grad(), ShapesOnly(), pytest.raises((RuntimeError, ValueError)):
            function(*args, **kwargs)


def test_values_and_mixed_types_are_left_to_torch() -> None:
    x = image()
    assert returned(F.relu, (x,), {}) is None, "a real tensor has values"
    assert returned(torch.add, on_meta((x, x.double())), {}) is None
    assert returned(F.relu, on_meta((x[:, ::2],)), {}) is None, "not all of its memory"
    assert returned(F.conv2d, on_meta((x, torch.rand(5, 3, 3, 3))), {"groups": 2}) is None
    assert returned(F.conv2d, on_meta((x, torch.rand(4, 6, 3, 3).double())), {}) is None
    assert returned(F.conv2d, on_meta((x, torch.rand(4, 6, 3, 3), torch.rand(5))), {}) is None
    assert returned(F.conv2d, on_meta((x, torch.rand(4, 6, 3, 3))), {"padding": "same"}) is None
    assert returned(F.conv2d, on_meta((image(channels_last=True), torch.rand(4, 6, 3, 3))), {}) is None
    assert returned(torch.mean, on_meta((x, (2, 3))), {"dtype": torch.float64}) is None
    assert returned(torch.add, on_meta((x, x.contiguous(memory_format=torch.channels_last))), {}) is None


def test_gradients_reach_what_they_reach() -> None:
    block = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).to("meta")
    with ShapesOnly():
        block(image(2, 3, 5, 7).to("meta")).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_a_copy_shares_nothing_with_its_module() -> None:
    block = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    block[0].register_forward_hook(lambda *_: None)
    twin, expected = copy_module(block), copy.deepcopy(block)
    for part, other, reference in zip(block.modules(), twin.modules(), expected.modules(), strict=True):
        assert vars(other).keys() == vars(reference).keys()
        for name, value in vars(part).items():
            if isinstance(value, (dict, list, Tensor)):
                assert vars(other)[name] is not value
                assert type(vars(other)[name]) is type(vars(reference)[name])
    twin[1].register_forward_hook(lambda *_: None)
    assert not block[1]._forward_hooks and len(twin[0]._forward_hooks) == 1
    assert torch.equal(twin[0].weight, block[0].weight)
