"""Small objects on large canvases (after the cluttered translated MNIST of Mnih et al. 2014).

`canvas:84:fashion-mnist`, a row of the common table of data sets, has every image at a random place of a canvas of
84 x 84 pixels, among fragments of other images and noise.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from td_compiler.benchmarks.data.datasets import DATASETS, DataError, Derived, Images

__all__ = ["FRAGMENT", "FRAGMENTS", "make_canvases"]

FRAGMENTS = 8  # on each canvas
FRAGMENT = 8  # pixels a side
_NOISE = 40  # of 255
_CHUNK = 2_000


def make_canvases(images: Images, side: int, *, train: bool) -> Images:
    """Images (N, C, h, w), uint8, on canvases (N, C, side, side): the brighter of canvas and object at every pixel.

    Places, fragments and noise are drawn once for all, others for training than for testing.

    Raises:
        DataError: if the canvas is smaller than the images.
    """
    if min(side - images.images.shape[2], side - images.images.shape[3]) < 0:
        raise DataError(f"canvas:{side}: the images, {tuple(images.images.shape[2:])} pixels, do not fit on it.")
    generator = torch.Generator().manual_seed(int(train))
    chunks = [_canvases(chunk, images.images, side, generator) for chunk in images.images.split(_CHUNK)]
    return replace(images, images=torch.cat(chunks))


def _canvases(objects: torch.Tensor, others: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    count, channels = objects.shape[:2]
    size = (count, channels, side, side)
    canvases = torch.randint(0, _NOISE, size, generator=generator, dtype=torch.uint8)
    for _ in range(FRAGMENTS):
        donors = others[torch.randint(len(others), (count,), generator=generator)]
        _paste(canvases, _cut(donors, FRAGMENT, generator), generator)
    _paste(canvases, objects, generator)
    return canvases


def _cut(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """A random square of each image."""
    return images[_squares(images, (side, side), generator)]


def _paste(canvases: torch.Tensor, pieces: torch.Tensor, generator: torch.Generator) -> None:
    """Put a piece on each canvas, at a random place, where it is brighter than what is there."""
    where = _squares(canvases, (pieces.shape[2], pieces.shape[3]), generator)
    canvases[where] = torch.maximum(canvases[where], pieces)


def _squares(images: torch.Tensor, size: tuple[int, int], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The index of a rectangle at a random place of each image: (N, C, height, width)."""
    count, channels = images.shape[:2]
    rows, columns = (
        torch.randint(whole - part + 1, (count, 1), generator=generator) + torch.arange(part)
        for whole, part in zip(images.shape[2:], size, strict=True)
    )
    image, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return image, channel, rows[:, None, :, None], columns[:, None, None, :]


def _of(base: Images, side: str, train: bool) -> Images:
    if not side.isdecimal() or not int(side):
        raise DataError(
            f"canvas:{side}: after the colon comes a canvas' side in pixels, as in canvas:84:fashion-mnist."
        )
    if base.images.dtype != torch.uint8:
        raise DataError("Canvases are made of images of whole numbers up to 255.")
    return make_canvases(replace(base, images=base.cropped().images, crop=None), int(side), train=train)


DATASETS["canvas"] = Derived(lambda side, base: f"{base} on canvases of {side}x{side}", _of)
