"""The toy task of segmentation (thesis exp 3, SPEC 6.5): images in a mesh, every pixel with a class.

`meshes:2:fashion-mnist` is a row of the common table of data sets, `segmentation` one of the table of tasks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from td_compiler.benchmarks.data.datasets import DATASETS, DataError, Derived, Images, Stream
from td_compiler.benchmarks.training.tasks import TASKS, Loss, Task

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "THRESHOLD",
    "class_weights",
    "intersection_over_union",
    "label_pixels",
    "make_meshes",
]

THRESHOLD = 51  # of 255: the thesis' 0.2
BACKGROUND = "background"
IGNORE = "ignore"


def make_meshes(images: Images, side: int = 2) -> Images:
    """Images after each other, in the data set's order, become the tiles of one image.

    Images (N, C, H, W) of K classes become meshes (N // side^2, C, side H, side W) with labels of the same size without
    C, of K + 2 classes: those of the images, then `background`, then `ignore`. What fills no mesh is left over.
    """
    labels = label_pixels(images.images, images.labels, len(images.classes))
    tiles = _mesh(images.images, side), _mesh(labels[:, None], side)[:, 0]
    return Images(*tiles, (*images.classes, BACKGROUND, IGNORE))


def label_pixels(images: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The class of every pixel (N, H, W) of images (N, C, H, W), uint8, whose objects have the given labels (N,).

    A pixel above the threshold in any channel is the object's, one that is 0 is background, any other to be ignored.
    """
    brightest = images.amax(1)
    objects = labels[:, None, None].expand_as(brightest)
    rest = torch.where(brightest == 0, classes, classes + 1)
    return torch.where(brightest > THRESHOLD, objects, rest)


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The weight of every class (classes,) in the loss (thesis eq. 1): the background's pixels over the class's own.

    The last two classes are `background`, whose weight so is 1, and `ignore`, whose weight is 0, as is that of a class
    without a pixel.
    """
    pixels = torch.bincount(labels.flatten(), minlength=classes).double()
    weights = torch.where(pixels > 0, pixels[-2] / pixels, 0.0)
    weights[-1] = 0.0
    return weights.float()


def intersection_over_union(classes: int, average: str = "macro") -> Any:
    """The metric: the mean over all classes but the last, `ignore`, or with `average="none"` each one's, (classes,).

    Pixels whose true class is `ignore` do not count.
    """
    from torchmetrics.classification import MulticlassJaccardIndex

    return MulticlassJaccardIndex(classes, average=average, ignore_index=classes - 1)  # type: ignore[arg-type]


def _loss(data: Images | Stream) -> Loss:
    weights = class_weights(data.labels, len(data.classes))

    def mean_over_pixels(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # Torch's own mean of weighted losses divides by the weights; the authors' divides by the pixels.
        return F.cross_entropy(scores, labels, weights.to(scores), reduction="sum") / labels.numel()

    return mean_over_pixels


def _mesh(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Maps (N, C, H, W) as (N // side^2, C, side H, side W), the tiles row by row."""
    count = len(maps) // side**2
    channels, height, width = maps.shape[1:]
    tiles = maps[: side**2 * count].reshape(count, side, side, channels, height, width)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, side * height, side * width)


def _of(base: Images, side: str, train: bool) -> Images:
    if not side.isdecimal() or not int(side):
        raise DataError(
            f"meshes:{side}: after the colon comes the number of images a side, as in meshes:2:fashion-mnist."
        )
    if base.images.dtype != torch.uint8 or base.labels.ndim != 1:
        raise DataError("Meshes are made of images of whole numbers up to 255 with a class each.")
    return make_meshes(base.cropped(), int(side))


DATASETS["meshes"] = Derived(lambda side, base: f"{side}x{side} meshes of {base}", _of)
TASKS["segmentation"] = Task(_loss, intersection_over_union)
