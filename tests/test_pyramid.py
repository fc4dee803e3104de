"""The pyramid: every method against its own definition, evaluated otherwise in float64 (SPEC 3)."""

from __future__ import annotations

import copy
import inspect
import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from td_compiler.errors import ConversionError
from td_compiler.layers import pyramid as module
from td_compiler.layers.pyramid import DOWNSAMPLERS, Downsample, Pyramid, downsample_gaussian, laplacian_bands
from tests.support.reference import authors_array, reference_images

SIZES = [(1, 1), (5, 8), (13, 9), (40, 33)]
FACTORS = [(2, 2), (3, 3), (4, 4), (8, 8), (32, 32), (4, 2), (1, 3)]
METHODS: list[Downsample] = ["gaussian", "blur", "blurpool", "pool", "none", "area"]

Line = Callable[[np.ndarray, int], np.ndarray]
Rule = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


def images_of(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * height + width)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def separable(line: Line) -> Rule:
    """A rule for one line of pixels applied along both axes of (N, C, H, W), where the factor is not 1."""

    def apply(images: np.ndarray, factors: tuple[int, int]) -> np.ndarray:
        for axis, factor in zip((2, 3), factors, strict=True):
            images = np.apply_along_axis(line, axis, images, factor) if factor > 1 else images
        return images

    return apply


def gaussian_line(line: np.ndarray, factor: int) -> np.ndarray:
    """SPEC 3, pixel by pixel."""
    out = []
    for i in range(math.ceil(len(line) / factor)):
        centre, total, weight = (i + 0.5) * factor - 0.5, 0.0, 0.0
        for j, value in enumerate(line):
            distance = abs(j - centre)
            if distance < 1.5 * factor:
                tap = math.exp(-(distance**2) / (2 * (factor / 2) ** 2))
                total, weight = total + tap * value, weight + tap
        out.append(total / weight)
    return np.array(out)


def filtered_line(line: np.ndarray, taps: list[float], factor: int) -> np.ndarray:
    """NumPy's reflection (which repeats) and full convolution, then every factor-th pixel."""
    radius = len(taps) // 2
    padded = np.pad(line, radius, mode="reflect") if len(line) > 1 else np.repeat(line, 2 * radius + 1)
    return np.convolve(padded, np.array(taps) / sum(taps), mode="valid")[::factor]


def blur_line(line: np.ndarray, factor: int) -> np.ndarray:
    sigma = factor / 2
    radius = math.ceil(3 * sigma)
    return filtered_line(line, [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)], factor)


def binomial_line(line: np.ndarray, factor: int) -> np.ndarray:
    return filtered_line(line, [math.comb(2 * factor - 2, k) for k in range(2 * factor - 1)], factor)


def windows(reduce: Callable[[np.ndarray], np.ndarray], step: int | None = None) -> Rule:
    """A reduction over the window of the factors' size that begins at every step-th pixel, cut by the border."""

    def apply(images: np.ndarray, factors: tuple[int, int]) -> np.ndarray:
        down, across = factors
        rows = [
            [reduce(images[:, :, y : y + down, x : x + across]) for x in range(0, images.shape[3], step or across)]
            for y in range(0, images.shape[2], step or down)
        ]
        return np.array(rows).transpose(2, 3, 0, 1)

    return apply


def maximum(window: np.ndarray) -> np.ndarray:
    return window.max(axis=(2, 3))


def mean(window: np.ndarray) -> np.ndarray:
    return window.mean(axis=(2, 3))


DEFINITIONS: dict[str, Rule] = {
    "gaussian": separable(gaussian_line),
    "blur": separable(blur_line),
    "blurpool": lambda images, factors: separable(binomial_line)(windows(maximum, step=1)(images, factors), factors),
    "pool": windows(maximum),
    "area": windows(mean),
    "none": lambda images, factors: images[:, :, :: factors[0], :: factors[1]],
}


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_its_definition(method: Downsample, size: tuple[int, int], factors: tuple[int, int]) -> None:
    images = images_of(*size)
    expected = torch.from_numpy(DEFINITIONS[method](images.numpy(), factors))
    factor = factors[0] if factors[0] == factors[1] else factors
    found = DOWNSAMPLERS[method](images, factor)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(DOWNSAMPLERS[method](images.float(), factor), expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("name", ["lenet_fc", "nin_light", "nin", "resnet32"])
def test_gaussian_is_the_authors(name: str, factor: int) -> None:
    found = downsample_gaussian(reference_images(name), factor)
    torch.testing.assert_close(found, authors_array(f"{name}|p{factor}"), rtol=0, atol=1e-6)


def test_laplacian_bands_sum_back_to_the_images() -> None:
    images = images_of(37, 26)
    bands = Pyramid((1, 2, 4, 8), "laplacian")(images)
    total = bands[-1]
    torch.testing.assert_close(total, downsample_gaussian(images, 8))
    for band in reversed(bands[:-1]):
        total = band + F.interpolate(total, size=band.shape[-2:], mode="bilinear")
    torch.testing.assert_close(total, images)


def test_laplacian_bands_are_zero_where_coarser_scales_hold_all() -> None:
    bands = Pyramid((1, 2, 4), "laplacian")(torch.full((1, 1, 16, 16), 3.0))
    assert [round(band.abs().max().item(), 5) for band in bands] == [0.0, 0.0, 3.0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    factors=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    method=st.sampled_from(METHODS),
)
def test_sizes_round_up_and_constants_stay(
    height: int, width: int, factors: tuple[int, int], method: Downsample
) -> None:
    images = torch.full((1, 2, height, width), -1.75)
    level = Pyramid((1, factors), method)(images)[1]
    assert level.shape == (1, 2, math.ceil(height / factors[0]), math.ceil(width / factors[1]))
    torch.testing.assert_close(level, torch.full_like(level, -1.75))


def test_every_scale_is_made_from_the_images() -> None:
    seen: list[tuple[torch.Tensor, int]] = []

    def record(images: torch.Tensor, factor: int) -> torch.Tensor:
        seen.append((images, factor))
        return images[..., ::factor, ::factor]

    images = images_of(9, 9)
    levels = Pyramid((1, 2, 4), record)(images)
    assert levels[0] is images
    assert [factor for _, factor in seen] == [2, 4]
    assert all(given is images for given, _ in seen)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: Downsample) -> None:
    images = images_of(5, 4)[:1, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: DOWNSAMPLERS[method](x, (2, 3)), images)


@pytest.mark.parametrize("method", [*METHODS, "laplacian"])
def test_half_precision_and_devices_without_memory(method: Downsample) -> None:
    images = torch.rand(2, 3, 21, 18)
    net = Pyramid((1, 2, 4), method)
    for level, half in zip(net(images), net(images.bfloat16()), strict=True):
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), level, rtol=0, atol=0.02)
    assert [level.device.type for level in net(images.to("meta"))] == ["meta"] * 3


@pytest.mark.parametrize("method", [*METHODS, "laplacian"])
def test_trace_and_export_with_dynamic_sizes(method: Downsample) -> None:
    net = Pyramid((1, 2, (4, 3)), method)
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    exported = torch.export.export(net, (torch.rand(2, 3, 33, 40),), dynamic_shapes=(dynamic,)).module()
    images = torch.rand(3, 3, 26, 19)
    for levels in (exported(images), fx.symbolic_trace(net)(images)):
        for level, expected in zip(levels, net(images), strict=True):
            torch.testing.assert_close(level, expected)


@pytest.mark.parametrize("method", METHODS)
def test_functions_stand_alone_as_source(method: Downsample) -> None:
    """Emitted source carries the functions verbatim, beside imports of torch alone."""
    functions = [function for _, function in inspect.getmembers(module, inspect.isfunction)]
    functions = [function for function in functions if function.__module__ == module.__name__]
    source = "\n\n".join(textwrap.dedent(inspect.getsource(f)) for f in functions if not f.__name__.startswith("_"))
    namespace: dict[str, Any] = {"torch": torch, "F": F, "fx": fx}
    exec(source, namespace)
    images = images_of(13, 9)
    function = namespace[DOWNSAMPLERS[method].__name__]
    torch.testing.assert_close(function(images, 4), DOWNSAMPLERS[method](images, 4), rtol=0, atol=0)


class Learned(nn.Module):
    """A user's own downsampling, with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor, factor: int) -> torch.Tensor:
        return self.gain * F.avg_pool2d(images, factor, ceil_mode=True)


def test_a_module_is_a_submodule_that_moves_saves_and_copies() -> None:
    net = Pyramid((1, 2), Learned())
    assert list(net.state_dict()) == ["downsample.gain"]
    assert copy.deepcopy(net).double()(images_of(5, 5))[1].shape == (2, 3, 3, 3)
    assert "Learned()" in repr(net)
    assert "scales=(1, 2)" in repr(net)


def test_repr_names_the_method() -> None:
    assert repr(Pyramid((1, 2), "area")) == "Pyramid(scales=(1, 2), downsample=area)"
    assert "downsample=downsample_gaussian" in repr(Pyramid((1, 2), downsample_gaussian))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x, f: x[..., : x.shape[2] // f, : x.shape[3] // f], r"made \(2, 3, 2, 4\) .* tensor \(2, 3, 3, 4\)"),
        (lambda x, f: x[:, :1, ::f, ::f], r"made \(2, 1, 3, 4\)"),
        (lambda x, f: [x], "made list of images"),
    ],
)
def test_a_callable_of_the_wrong_size_is_refused(result: Callable[..., torch.Tensor], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        Pyramid((1, 2), result)(images_of(5, 8))


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_batch_of_images_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(ConversionError, match=r"\(N, C, H, W\), not torch\..* of shape \("):
        Pyramid((1, 2))(images)


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(ConversionError, match="not list"):
        Pyramid((1, 2))([1.0])


def test_scales_and_methods_are_checked() -> None:
    for scales in ((), (2, 4), ((1, 2), (2, 4))):
        with pytest.raises(ConversionError, match="must begin with 1"):
            Pyramid(scales)
    with pytest.raises(ConversionError, match="'gausian' is not one of gaussian, blur"):
        Pyramid((1, 2), "gausian")


def test_laplacian_bands_of_one_level_are_that_level() -> None:
    images = images_of(3, 3)
    assert laplacian_bands([images])[0] is images
