"""Batches of a data set for one epoch: the same ones for the same run and epoch, whatever process or machine asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from td_compiler.benchmarks.data.images import Images, Stream, centre_crop

__all__ = ["Batches", "augmented", "batches", "seed_of", "shuffled", "split"]

# Eigenvalues and eigenvectors of the colours of ImageNet's pixels in [0, 1] (Krizhevsky et al. 2012).
_COLOUR_VALUES = (0.2175, 0.0188, 0.0045)
_COLOUR_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def seed_of(run: int, epoch: int = 0, purpose: int = 0) -> int:
    """A seed of its own for every run, epoch and purpose."""
    return (run * 100_003 + epoch) * 11 + purpose


def split(count: int, held_out: float, run: int) -> tuple[Tensor, Tensor]:
    """Indices of the images to train on and of those held out, drawn anew for every run (SPEC 5)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(run, purpose=1)))
    kept = count - round(held_out * count)
    return order[:kept], order[kept:]


def shuffled(
    indices: Tensor, batch_size: int, run: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[Tensor]:
    """One process's share of an epoch's batches: indices in a random order, an incomplete last batch left out.

    Args:
        indices: of the training images, (N,).
        batch_size: over all processes; all images make one batch if there are fewer.
        run, epoch: what the order depends on.
        rank, world_size: which process, of how many: each takes an equal part of every batch, whose size they divide.
    """
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed_of(run, epoch, purpose=2)))
    size = min(batch_size, len(indices) // world_size * world_size)
    return [batch[rank::world_size] for batch in indices[order].split(size) if len(batch) == size]


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of a data set in memory: pairs of images (B, C, H, W), uint8, and labels, on the data's device."""

    data: Images
    indices: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self.indices:
            here = indices.to(self.data.labels.device)
            yield self.data.images[here], self.data.labels[here]


def batches(
    data: Images | Stream, indices: Sequence[Tensor], workers: int = 0
) -> Batches | DataLoader[tuple[Tensor, int]]:
    """The batches of these indices, from memory or read by loader processes."""
    if isinstance(data, Images):
        return Batches(data, indices)
    pin = torch.cuda.is_available()
    own = (
        torch.Generator()
    )  # a loader draws a seed for its processes, which must not disturb the epoch's random numbers
    order = [each.tolist() for each in indices]
    return DataLoader(data, batch_sampler=order, num_workers=workers, pin_memory=pin, generator=own)


def augmented(images: Tensor, augment: str, crop: int | None) -> Tensor:
    """Images changed at random, drawn from torch's global generator of the CPU.

    Args:
        images: (N, C, H, W) in [0, 1].
        augment: `none`, `shift-flip` or `crop-flip-colour`, see `td_compiler.benchmarks.training.recipes.Recipe`.
        crop: the side of the squares to cut out, at random with `crop-flip-colour`, else in the middle; None for none.
    """
    if augment == "shift-flip":
        height, width = images.shape[-2:]
        down, right = (_whole(-round(0.1 * size), round(0.1 * size), len(images)) for size in (height, width))
        return _middle(_flipped(_windows(images, down, right, (height, width))), crop)
    if augment == "crop-flip-colour":
        side = crop or images.shape[-1]
        top, left = (_whole(0, size - side, len(images)) for size in images.shape[-2:])
        return _recoloured(_flipped(_windows(images, top, left, (side, side))))
    return _middle(images, crop)


def _middle(images: Tensor, crop: int | None) -> Tensor:
    return images if crop is None else centre_crop(images, crop)


def _whole(low: int, high: int, count: int) -> Tensor:
    """Random whole numbers from low to high, both included."""
    return torch.randint(low, high + 1, (count,))


def _windows(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """From each image a window with its corner at (top, left); pixels outside the image repeat those at its border."""
    height, width = images.shape[-2:]
    rows = (top[:, None] + torch.arange(size[0])).clamp(0, height - 1).to(images.device)
    columns = (left[:, None] + torch.arange(size[1])).clamp(0, width - 1).to(images.device)
    each, channels = (torch.arange(count, device=images.device) for count in images.shape[:2])
    return images[each[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _flipped(images: Tensor) -> Tensor:
    """Every second image, at random, mirrored left to right."""
    mirrored = torch.rand(len(images)).lt(0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _recoloured(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) with a random multiple of each principal colour added; others as they are."""
    if images.shape[1] != 3:
        return images
    strengths = 0.1 * torch.randn(len(images), 3) * torch.tensor(_COLOUR_VALUES)
    offsets = strengths @ torch.tensor(_COLOUR_VECTORS).T
    return (images + offsets.to(images)[:, :, None, None]).clamp(0, 1)
