"""How the image is brought to every scale (SPEC 3; paper section 3.1; thesis 3.2.3 for the frequency bands).

The functions use torch alone: emitted source carries these definitions verbatim. The maps
between sizes are matrices made in the forward from the sizes that the images have, so that any size works, on any
device, and under torch.export.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from td_compiler.errors import ConversionError

__all__ = [
    "DOWNSAMPLERS",
    "Downsample",
    "Pyramid",
    "downsample_area",
    "downsample_blur",
    "downsample_blurpool",
    "downsample_gaussian",
    "downsample_none",
    "downsample_pool",
    "laplacian_bands",
]

Downsample = Literal["gaussian", "blur", "blurpool", "pool", "none", "area", "laplacian"]


def factor_pair(factor: int | tuple[int, int]) -> tuple[int, int]:
    """A factor as (height factor, width factor)."""
    return (factor, factor) if isinstance(factor, int) else factor


def working_dtype(images: Tensor) -> torch.dtype:
    """The type that filters have: float64 for float64 images, else float32."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32


@fx.wrap
def downsample_gaussian(images: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Anti-aliased resize of (N, C, H, W) to (N, C, ceil(H / factor), ceil(W / factor)); sigma = factor / 2 pixels."""

    def matrix(size: int, factor: int) -> Tensor:
        if factor == 1:
            return torch.eye(size, device=images.device, dtype=dtype)
        pixels = torch.arange(size, device=images.device, dtype=dtype)
        rows = (size + factor - 1) // factor  # no negative sizes: ONNX truncates
        index = torch.arange(rows, device=images.device, dtype=dtype)
        distance = (pixels - ((index + 0.5) * factor - 0.5)[:, None]).abs()
        weights = torch.exp(-2 * (distance / factor) ** 2)
        weights = weights.masked_fill(distance >= 1.5 * factor, 0)
        return weights / weights.sum(dim=1, keepdim=True)

    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    down, across = (factor, factor) if isinstance(factor, int) else factor
    rows, columns = matrix(images.shape[-2], down), matrix(images.shape[-1], across)
    return (rows @ images.to(dtype) @ columns.mT).to(images.dtype)


def filter_and_subsample(images: Tensor, taps: Tensor, factor: int) -> Tensor:
    """Filter the last axis with an odd number of taps and keep every factor-th pixel.

    Borders are reflected, again and again where the filter is wider than the image.
    (..., size) becomes (..., ceil(size / factor)).
    """
    size, radius = images.shape[-1], taps.shape[0] // 2
    period = max(2 * (size - 1), 1)
    position = torch.arange(-radius, size + radius, device=images.device) % period
    padded = images.index_select(-1, torch.minimum(position, period - position) % size)
    start = torch.arange(0, size, factor, device=images.device)
    tap = torch.arange(size + 2 * radius, device=images.device) - start[:, None]
    matrix = taps[tap.clamp(0, 2 * radius)] * ((tap >= 0) & (tap <= 2 * radius))
    return padded.to(taps.dtype) @ matrix.mT


def gaussian_taps(factor: int, images: Tensor) -> Tensor:
    """A Gaussian of sigma = factor / 2 input pixels, cut at ceil(3 sigma); sums to 1.

    For factor 1 it is a single 1.
    """
    extent = 0 if factor == 1 else -(-3 * factor // 2)
    taps = torch.arange(-extent, extent + 1, device=images.device)
    distance = taps.to(working_dtype(images))
    weights = torch.exp(-2 * (distance / factor) ** 2)
    return weights / weights.sum()


@fx.wrap
def downsample_blur(images: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Gaussian blur (sigma = factor / 2, extent ceil(3 sigma)), then subsampling.

    Images (N, C, H, W) become (N, C, ceil(H / factor), ceil(W / factor)).
    """
    down, across = factor_pair(factor)
    narrow = filter_and_subsample(images, gaussian_taps(across, images), across)
    small = filter_and_subsample(narrow.mT, gaussian_taps(down, images), down).mT
    return small.to(images.dtype)


def binomial_taps(factor: int, images: Tensor) -> Tensor:
    """The binomial filter of 2 factor - 1 taps that sums to 1: for 2, (1, 2, 1) / 4."""
    taps = [1.0]
    for _ in range(2 * factor - 2):
        shifted = zip([0.0, *taps], [*taps, 0.0], strict=True)
        taps = [(left + right) / 2 for left, right in shifted]
    return torch.tensor(taps, device=images.device, dtype=working_dtype(images))


@fx.wrap
def downsample_blurpool(images: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Max-pooling with stride 1, a binomial blur, then subsampling (Zhang 2019).

    Images (N, C, H, W) become (N, C, ceil(H / factor), ceil(W / factor)). A maximum is
    taken over the factor x factor pixels that begin at each pixel and lie inside the
    image; the blur, of 2 factor - 1 taps, reflects at the borders.
    """
    down, across = factor_pair(factor)
    room = F.pad(images, (0, across - 1, 0, down - 1), value=float("-inf"))
    highest = F.max_pool2d(room, (down, across), stride=1)
    narrow = filter_and_subsample(highest, binomial_taps(across, images), across)
    small = filter_and_subsample(narrow.mT, binomial_taps(down, images), down).mT
    return small.to(images.dtype)


def downsample_pool(images: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Maximum over windows of factor x factor pixels.

    Images (N, C, H, W) become (N, C, ceil(H / factor), ceil(W / factor)).
    """
    return F.max_pool2d(images, factor, stride=factor, ceil_mode=True)


def downsample_area(images: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Mean over windows of factor x factor pixels.

    Images (N, C, H, W) become (N, C, ceil(H / factor), ceil(W / factor)).
    A window that the border cuts averages the pixels that it has.
    """
    return F.avg_pool2d(images, factor, stride=factor, ceil_mode=True)


def downsample_none(images: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Every factor-th pixel, from the first.

    Images (N, C, H, W) become (N, C, ceil(H / factor), ceil(W / factor)).
    """
    down, across = factor_pair(factor)
    return images[..., ::down, ::across]


def laplacian_bands(levels: list[Tensor]) -> list[Tensor]:
    """Non-overlapping frequency bands from nested ones, finest first (thesis 3.2.3).

    Each level (N, C, H, W) loses what the next coarser one, bilinearly upsampled,
    holds; the coarsest stays as it is. Upsampling and adding the bands from the
    coarsest on gives the levels back.
    """
    bands = []
    for index, level in enumerate(levels[:-1]):
        size = level.shape[-2:]
        coarser = F.interpolate(levels[index + 1], size=size, mode="bilinear")
        bands.append(level - coarser)
    return [*bands, levels[-1]]


DOWNSAMPLERS: dict[str, Callable[[Tensor, int | tuple[int, int]], Tensor]] = {
    "gaussian": downsample_gaussian,
    "blur": downsample_blur,
    "blurpool": downsample_blurpool,
    "pool": downsample_pool,
    "area": downsample_area,
    "none": downsample_none,
    "laplacian": downsample_gaussian,  # the bands are differences of these
}


class Pyramid(nn.Module):
    """The image at every scale, each made from the image itself, not from the scale before (SPEC 2.1, 3).

    Args:
        scales: the factors, finest first; the first is 1 (or (1, 1)). A pair is (height factor, width factor).
        downsample: the name of a method of SPEC 3, or a callable (images (N, C, H, W), factor) -> images
            (N, C, ceil(H / factor), ceil(W / factor)). A callable that is a module becomes a submodule.

    Raises:
        ConversionError: if the scales do not begin with 1, or the method is unknown.
    """

    scales: tuple[int | tuple[int, int], ...]
    downsample: Downsample | Callable[..., Tensor]

    def __init__(
        self, scales: Sequence[int | tuple[int, int]], downsample: Downsample | Callable[..., Tensor] = "gaussian"
    ) -> None:
        super().__init__()
        if not scales or factor_pair(scales[0]) != (1, 1):
            raise ConversionError(f"scales={tuple(scales)} must begin with 1, the image itself, e.g. (1, 2, 4).")
        if not callable(downsample) and downsample not in DOWNSAMPLERS:
            methods = ", ".join(get_args(Downsample))
            raise ConversionError(f"downsample={downsample!r} is not one of {methods}, or a callable (images, factor).")
        self.scales = tuple(scales)
        self.downsample = downsample

    def forward(self, images: Tensor) -> list[Tensor]:
        """The images (N, C, H, W) at every scale, finest first, each (N, C, ceil(H / scale), ceil(W / scale)).

        The first is the images themselves (their finest band under `laplacian`).

        Raises:
            ConversionError: if the images are not a floating-point tensor (N, C, H, W), or a callable's result has
                not the size of its scale.
        """
        _check_images(images)
        levels = [images]
        for scale in self.scales[1:]:
            if isinstance(self.downsample, str):
                levels.append(_resize(images, scale, self.downsample))
            else:
                levels.append(self.downsample(images, scale))
                _check_level(levels[-1], images, scale)
        return laplacian_bands(levels) if self.downsample == "laplacian" else levels

    def extra_repr(self) -> str:
        """The scales, and the method unless it is a submodule."""
        if isinstance(self.downsample, nn.Module):
            return f"scales={self.scales}"
        method = self.downsample
        return f"scales={self.scales}, downsample={method if isinstance(method, str) else _name(method)}"


def _name(function: Callable[..., Tensor]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _resize(images: Tensor, scale: int | tuple[int, int], method: str) -> Tensor:
    return DOWNSAMPLERS[method](images, scale)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ConversionError(f"Images must be a tensor (N, C, H, W), not {type(images).__name__}.")
    if images.dim() != 4 or not images.is_floating_point():
        shape = tuple(images.shape)
        raise ConversionError(f"Images must be floating-point (N, C, H, W), not {images.dtype} of shape {shape}.")


def _check_level(level: Tensor, images: Tensor, scale: int | tuple[int, int]) -> None:
    down, across = factor_pair(scale)
    expected = (*images.shape[:2], (images.shape[2] + down - 1) // down, (images.shape[3] + across - 1) // across)
    found = tuple(level.shape) if isinstance(level, Tensor) else type(level).__name__
    if found != expected:
        raise ConversionError(
            f"The downsampling callable made {found} of images {tuple(images.shape)} at scale {scale}: "
            f"it must return a tensor {expected}, each side divided by the factor and rounded up."
        )


# Decisions on sizes and types are no part of a trace: torch.fx records these calls whole.
fx.wrap("_resize")
fx.wrap("_check_images")
fx.wrap("_check_level")
