"""Labelled images, in memory or read as they are needed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["DataError", "Images", "Stream", "as_float", "centre_crop", "read_archive", "square"]

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
        return image if self.side is None else square(image, self.side)

    @staticmethod
    def of_folder(folder: Path, side: int | None = None, crop: int | None = None, part: str = "train") -> Stream:
        """The images of `folder/PART/CLASS/*`; classes are numbered as in `folder/train`, whatever the part.

        Raises:
            DataError: if there is no folder with images, or the part has classes that `train` has not.
        """
        known, classes = _folders(folder / "train"), _folders(folder / part)
        found = [[path for path in sorted(each.rglob("*")) if path.suffix.lower() in _SUFFIXES] for each in classes]
        empty = [each for each, paths in zip(classes, found, strict=True) if not paths]
        if not classes or empty:
            what = (
                f"no images in {empty[0]}" if empty else f"no folder {folder / part} with a folder of images per class"
            )
            raise DataError(f"There is {what}: give another folder with --data-root or folder:PATH.")
        names = tuple(each.name for each in known)
        numbers = _numbers(names, [each.name for each in classes], str(folder / part))
        labels = torch.tensor([number for number, paths in zip(numbers, found, strict=True) for _ in paths])
        files = tuple(path for paths in found for path in paths)
        return Stream(files, labels, names, side, crop)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _numbers(known: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """The place of each class among those of the training images.

    Raises:
        DataError: if one is not among them.
    """
    strange = [name for name in classes if name not in known]
    if strange:
        raise DataError(
            f"{where} has a class {strange[0]!r} that train has not ({', '.join(known[:5])}"
            f"{', ...' if len(known) > 5 else ''}): give both the same folders of classes."
        )
    return [known.index(name) for name in classes]


def read_archive(path: Path, split: str) -> Images:
    """The images of `NAME/SPLIT/CLASS/*` in a .tar.gz, in the order of their names; classes numbered as in `train`.

    Raises:
        DataError: if the archive or an image in it cannot be read, or classes are there that `train` has not.
    """
    known: set[str] = set()
    try:
        found = sorted(_members(path, split, known))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read ({error}): get it anew.") from error
    if not found:
        raise DataError(f"{path} has no images in a folder {split}/CLASS.")
    classes = tuple(sorted(known))
    images = torch.stack([_decode(content, f"{path}:{member}") for _, member, content in found])
    return Images(images, torch.tensor(_numbers(classes, [name for name, _, _ in found], f"{path}, {split}")), classes)


def _members(path: Path, split: str, known: set[str]) -> Iterator[tuple[str, str, bytes]]:
    """(class, name, content) of an archive's images; the classes of the training images are added to `known`."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if len(parts) == 4 and parts[1] == "train":
                known.add(parts[2])
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


def square(image: Tensor, side: int) -> Tensor:
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
