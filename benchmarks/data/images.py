"""Labelled images, in memory or read as they are needed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["DataError", "Images", "Stream", "as_float", "centre_crop", "read_archive"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
# Larger data sets are read from their files in every epoch, by loader processes.
_MEMORY_LIMIT = 4 * 2**30


class DataError(ValueError):
    """A data set that is missing or damaged; the message is one sentence for the user: where, and the way out."""


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in memory.

    Attributes:
        images: (N, C, H, W), uint8; float32 where a filter made values that are no longer whole or within bounds.
        labels: (N,), int64; (N, H, W) for segmentation.
        classes: their names.
        crop: the side of the square that networks see, where images are larger than that; training crops at random.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    crop: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of what networks see."""
        channels, height, width = self.images.shape[1:]
        return (channels, self.crop or height, self.crop or width)

    def subset(self, indices: Tensor) -> Images:
        """The images of these indices (n,), in their order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def cropped(self) -> Images:
        """The centres of the images, as networks see them."""
        return self if self.crop is None else replace(self, images=centre_crop(self.images, self.crop), crop=None)

    def to(self, device: torch.device) -> Images:
        """The same on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Stream(Dataset[tuple[Tensor, int]]):
    """A data set in image files, read as they are needed; an item is an image (3, side, side), uint8, and its label.

    Attributes:
        files: the images.
        labels: (N,), int64.
        classes: their names.
        side: images are resized to this short side and cut to the square in their middle; None: they stay as they are.
        crop: as in :class:`Images`.
    """

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    side: int | None = None
    crop: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._read(self.files[index]), int(self.labels[index])

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of what networks see."""
        channels, height, width = self[0][0].shape
        return (channels, self.crop or height, self.crop or width)

    @property
    def fits_in_memory(self) -> bool:
        """Whether all images together are small enough to be kept in memory."""
        return len(self) * self[0][0].numel() <= _MEMORY_LIMIT

    def subset(self, indices: Tensor) -> Stream:
        """The images of these indices (n,), in their order."""
        return replace(self, files=tuple(self.files[i] for i in indices.tolist()), labels=self.labels[indices])

    def gather(self) -> Images:
        """All images, read into memory.

        Raises:
            DataError: if one cannot be read, or is of another size than the first.
        """
        images = torch.empty((len(self), *self[0][0].shape), dtype=torch.uint8)
        for index, path in enumerate(self.files):
            image = self._read(path)
            if image.shape != images.shape[1:]:
                sizes = f"{tuple(image.shape)}, not {tuple(images.shape[1:])} as {self.files[0]}"
                raise DataError(f"{path} is {sizes}: have all resized, with folder:PATH@SIZE.")
            images[index] = image
        return Images(images, self.labels, self.classes, self.crop)

    def _read(self, path: Path) -> Tensor:
        image = _decode(path.read_bytes(), str(path))
        return image if self.side is None else _square(image, self.side)

    @staticmethod
    def of_folder(folder: Path, side: int | None = None, crop: int | None = None) -> Stream:
        """The images of `folder/CLASS/*`.

        Raises:
            DataError: if there is no folder with images.
        """
        classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        found = [[path for path in sorted(each.rglob("*")) if path.suffix.lower() in _SUFFIXES] for each in classes]
        empty = [each.name for each, paths in zip(classes, found, strict=True) if not paths]
        if not classes or empty:
            what = (
                f"no images in {folder / empty[0]}"
                if empty
                else f"no folder {folder} with a folder of images per class"
            )
            raise DataError(f"There is {what}: give another folder with --data-root or folder:PATH.")
        labels = torch.tensor([label for label, paths in enumerate(found) for _ in paths])
        files = tuple(path for paths in found for path in paths)
        return Stream(files, labels, tuple(each.name for each in classes), side, crop)


def read_archive(path: Path, split: str) -> Images:
    """The images of `NAME/SPLIT/CLASS/*` in a .tar.gz, in the order of their names.

    Raises:
        DataError: if the archive or an image in it cannot be read.
    """
    try:
        found = sorted(_members(path, split))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read ({error}): get it anew.") from error
    if not found:
        raise DataError(f"{path} has no images in a folder {split}/CLASS.")
    classes = tuple(sorted({name for name, _, _ in found}))
    images = torch.stack([_decode(content, f"{path}:{member}") for _, member, content in found])
    return Images(images, torch.tensor([classes.index(name) for name, _, _ in found]), classes)


def _members(path: Path, split: str) -> Iterator[tuple[str, str, bytes]]:
    """(class, name, content) of an archive's images."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            content = archive.extractfile(member) if len(parts) == 4 and parts[1] == split else None
            if content is not None and Path(member.name).suffix.lower() in _SUFFIXES:
                yield parts[2], member.name, content.read()


def _decode(content: bytes, name: str) -> Tensor:
    """An image file's pixels, (3, H, W), uint8."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # a damaged PNG is a SyntaxError
        reason = "cannot be identified" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{name} is not an image that can be read ({reason}): replace or remove it.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _square(image: Tensor, side: int) -> Tensor:
    """An image (C, H, W) resized to a short side, and the square in its middle."""
    from torchvision.transforms.v2 import functional

    resized: Tensor = functional.resize(image, [side], antialias=True)
    return centre_crop(resized, side)


def centre_crop(images: Tensor, side: int) -> Tensor:
    """The squares (..., side, side) in the middle of images (..., H, W)."""
    top, left = ((size - side) // 2 for size in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def as_float(images: Tensor) -> Tensor:
    """Images as networks take them, float32: whole numbers up to 255 become values in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
