"""What is measured of a trained network beside accuracy, image by image: calibration, shifts, heat maps.

Each function gives a number for every image, so that differences between two networks have an interval over images and
runs (SPEC 10). Networks take images (N, C, H, W) in [0, 1], are in evaluation mode and give class scores (N, K).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    *("BINS", "LEVELS", "OVERLAPS", "Network", "box_overlaps", "calibration_gaps", "deletion_and_insertion"),
    *("energy_inside", "hits", "in_batches", "pixels_above", "rank_correlation", "shift_agreement"),
]

Network = Callable[[Tensor], Tensor]

BINS = 15  # of confidences, as in Guo et al. 2017
_BATCH = 250


@torch.no_grad()
def in_batches(network: Network, images: Tensor) -> Tensor:
    """Class scores (N, K), some images at a time."""
    return torch.cat([network(batch) for batch in images.split(_BATCH)])


def calibration_gaps(confidences: Tensor, right: Tensor) -> Tensor:
    """By how much confidence is above truth, in the column of the confidence's bin: (N, BINS).

    The expected calibration error (Guo et al. 2017) of any choice of images is the sum over bins of the absolute value
    of a bin's sum over images, divided by the number of images.

    Args:
        confidences: the largest probability of each image (N,).
        right: whether the class of that probability is the image's (N,).
    """
    edges = torch.linspace(0, 1, BINS + 1, device=confidences.device, dtype=confidences.dtype)
    bins = (torch.bucketize(confidences, edges, right=True) - 1).clamp(0, BINS - 1)
    return F.one_hot(bins, BINS) * (confidences - right.to(confidences))[:, None]


def shift_agreement(network: Network, images: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """The share of pairs of random shifts under which a network gives an image the same class (Zhang 2019): (N,).

    As there, two shifts differ by less than a seventh of each side. Pixels that come into the image repeat its border.

    Args:
        network: see above.
        images: (N, C, H, W).
        pairs: how many pairs of shifts, the same ones for all images.
        generator: draws them, on the CPU.
    """
    height, width = images.shape[2:]
    reach = [max(2, round(side / 7)) for side in (height, width)]
    padded = F.pad(images, _around(reach[1] - 1) + _around(reach[0] - 1), mode="replicate")
    agreed = torch.zeros(len(images), device=images.device)
    for _ in range(pairs):
        found = []
        for _ in range(2):
            top, left = (int(torch.randint(each, (1,), generator=generator)) for each in reach)
            found.append(in_batches(network, padded[..., top : top + height, left : left + width]).argmax(1))
        agreed += found[0] == found[1]
    return agreed / pairs


def _around(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2


@torch.no_grad()
def deletion_and_insertion(
    network: Network, images: Tensor, heat: Tensor, classes: Tensor, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """How fast a class is lost, and found, when pixels go, and come, in the order of a heat map (Petsiuk et al. 2018).

    Deleted pixels take the image's mean colour; inserted ones come into the blurred image. Pixels of one value go in
    random order.

    Args:
        network: see above.
        images: (N, C, H, W).
        heat: (N, 1, H, W), of any range.
        classes: (N,), what the heat maps are for.
        steps: in how many equal parts the pixels go.
        generator: draws the order of equal pixels, on the CPU.

    Returns:
        The area under the class's probability against the share of pixels deleted, and inserted, from 0 to 1: (N,),
        (N,). A good heat map has a small first and a large second.
    """
    from td_compiler.benchmarks.attacks.filters import gaussian_blur

    empty = images.mean((2, 3), keepdim=True).expand_as(images)
    blurred = gaussian_blur(images, min(images.shape[2:]) / 8)
    ranks = _ranks(heat.flatten(1), generator).view_as(heat)
    count = ranks[0].numel()
    curves: list[list[Tensor]] = [[], []]
    for step in range(steps + 1):
        gone = ranks < round(count * step / steps)
        for curve, shown in zip(
            curves, (torch.where(gone, empty, images), torch.where(gone, images, blurred)), strict=True
        ):
            probabilities = in_batches(network, shown).softmax(1)
            curve.append(probabilities.gather(1, classes[:, None])[:, 0])
    deleted, inserted = (torch.trapezoid(torch.stack(curve, 1), dx=1 / steps) for curve in curves)
    return deleted, inserted


def _ranks(values: Tensor, generator: torch.Generator) -> Tensor:
    """The place of each value (N, P) among its row's, the largest first, equal ones in random order."""
    mixed = torch.randperm(values.shape[1], generator=generator).to(values.device)
    order = mixed[values[:, mixed].argsort(dim=1, descending=True, stable=True)]
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(values.shape[1], device=values.device).expand_as(order)
    )


def hits(heat: Tensor, objects: Tensor) -> Tensor:
    """The pointing game (Zhang et al. 2016): whether the heat map's maximum lies in the object (N,).

    Where several pixels share the maximum, it is the share of them that do.

    Args:
        heat: (N, 1, H, W).
        objects: (N, 1, H, W), whether each pixel is the object's.
    """
    largest = heat == heat.amax((2, 3), keepdim=True)
    return (largest & objects).flatten(1).sum(1) / largest.flatten(1).sum(1)


def energy_inside(heat: Tensor, objects: Tensor) -> Tensor:
    """The share of a heat map's positive values that lies in the object (Wang et al. 2020): (N,); 0 without any."""
    positive = heat.clamp(min=0)
    return (positive * objects).sum((1, 2, 3)) / positive.sum((1, 2, 3)).clamp(min=1e-12)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of two maps (N, 1, H, W) of each image (N,); 1 where a map has a single value.

    A map that has a single value for any weights says as little of the weights as one that never changes.
    """
    ranks = [_mean_ranks(each.flatten(1)) for each in (one, other)]
    centred = [each - each.mean(1, keepdim=True) for each in ranks]
    length = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    return torch.where(length > 0, (centred[0] * centred[1]).sum(1) / length.clamp(min=1e-12), 1.0)


def _mean_ranks(values: Tensor) -> Tensor:
    """The rank of each value (N, P) in its row, equal ones sharing the mean of theirs, float64."""
    ordered = values.sort(1).values
    below, upto = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (below + upto).double() / 2


def box_overlaps(heat: Tensor, objects: Tensor) -> Tensor:
    """How well boxes around a heat map's bright parts meet an object's, at each of `LEVELS`: (N, LEVELS).

    MaxBoxAccV2 (Choe et al. 2020) is the mean over three overlaps (`OVERLAPS`) of the share of images whose overlap is
    at least that, each at the level where this share is largest. As there, heat maps are scaled to [0, 1], every
    connected part has a box, and the largest intersection over union of any box with any of the object's counts.

    Args:
        heat: (N, 1, H, W), of any range.
        objects: (N, 1, H, W), whether each pixel is the object's, each connected part an object.
    """
    found = torch.zeros(len(heat), LEVELS)
    for number, (each, its) in enumerate(zip(_scaled(heat).cpu().numpy(), objects.cpu().numpy(), strict=True)):
        truth = _boxes(its[0])
        for level in range(LEVELS if len(truth) else 0):
            boxes = _boxes(each[0] >= level / LEVELS)
            found[number, level] = float(_overlaps(boxes, truth).max()) if len(boxes) else 0.0
    return found


def pixels_above(heat: Tensor, objects: Tensor) -> Tensor:
    """Pixels of heat maps, scaled to [0, 1], at or above each of `LEVELS`: (N, LEVELS, 2), the object's and all.

    The area under precision against recall, of all images' pixels together, is PxAP (Choe et al. 2020).
    """
    levels = torch.arange(LEVELS, device=heat.device) / LEVELS
    above = _scaled(heat).flatten(1)[:, None] >= levels[:, None]  # (N, LEVELS, P)
    return torch.stack([(above & objects.flatten(1)[:, None]).sum(2), above.sum(2)], 2)


LEVELS = 50
OVERLAPS = (0.3, 0.5, 0.7)


def _scaled(heat: Tensor) -> Tensor:
    low, high = (each(heat, (1, 2, 3), keepdim=True) for each in (torch.amin, torch.amax))
    return (heat - low) / (high - low).clamp(min=1e-12)


def _boxes(pixels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Boxes (K, 4) around the connected parts of a map (H, W): top, left, bottom, right, the last two outside."""
    from scipy import ndimage

    parts = ndimage.find_objects(ndimage.label(pixels, np.ones((3, 3)))[0])
    return np.array([[rows.start, columns.start, rows.stop, columns.stop] for rows, columns in parts]).reshape(-1, 4)


def _overlaps(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of every box (K, 4) with every other (L, 4): (K, L)."""
    low, high = np.maximum(ours[:, None, :2], theirs[:, :2]), np.minimum(ours[:, None, 2:], theirs[:, 2:])
    shared = (high - low).clip(min=0).prod(2)
    own, other = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (ours, theirs))
    union: NDArray[np.float64] = shared / (own[:, None] + other - shared)
    return union
