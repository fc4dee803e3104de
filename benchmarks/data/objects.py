"""Where the object is in the test images of a folder: masks beside them, or a file of boxes.

`folder:PATH` has masks where there is `PATH/masks/test/CLASS/NAME.png` for `PATH/test/CLASS/NAME.jpg`, the object's
pixels not black, or boxes where there is `PATH/boxes.csv` with lines `test/CLASS/NAME.jpg,left,top,right,bottom` in
pixels of the image file, the last two outside the box; several lines of one image are several objects. With `val` for
`test` where the images are there. Masks and boxes are resized and cut as their images are.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from td_compiler.benchmarks.data.datasets import DataError, chosen, test_files
from td_compiler.benchmarks.data.images import Stream, centre_crop, square
from td_compiler.benchmarks.lab.machine import Machine

__all__ = ["known_objects", "load_objects"]

Box = tuple[int, int, int, int]


def known_objects(data: str) -> str:
    """What a data set has of its objects: `masks`, `boxes` or ""."""
    folder = _folder(data)
    if folder is None:
        return ""
    return "masks" if (folder / "masks").is_dir() else "boxes" if (folder / "boxes.csv").is_file() else ""


def load_objects(data: str, machine: Machine, limit: int | None = None) -> Tensor:
    """Which pixels of the test images, as networks see them, are an object's: (N, 1, H, W).

    Args:
        data: the data set, one with masks or boxes.
        machine: where it is.
        limit: as in `benchmarks.data.datasets.load`, for the same images.

    Raises:
        DataError: if an image has no mask or box, or a file cannot be read.
    """
    folder, files = _folder(data), test_files(data, machine)
    assert folder is not None
    stream = files.subset(chosen(len(files), limit)) if limit is not None and limit < len(files) else files
    if known_objects(data) == "masks":
        masks = [_mask(folder, path) for path in stream.files]
    else:
        boxes = _read_boxes(folder / "boxes.csv")
        masks = [_boxed(folder, path, boxes) for path in stream.files]
    return torch.stack([_as_seen(mask, stream) for mask in masks])


def _folder(data: str) -> Path | None:
    key, _, argument = data.partition(":")
    return Path(argument.partition("@")[0]) if key == "folder" else None


def _mask(folder: Path, path: Path) -> Tensor:
    """The mask (1, H, W) of an image file."""
    mask = (folder / "masks" / path.relative_to(folder)).with_suffix(".png")
    try:
        with Image.open(mask) as image:
            pixels = np.array(image.convert("L")) > 0
    except FileNotFoundError:
        raise DataError(f"There is no mask {mask} for {path}: give every test image one.") from None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise DataError(f"{mask} is not an image that can be read ({error}): replace it.") from error
    return torch.from_numpy(pixels)[None]


def _boxed(folder: Path, path: Path, boxes: Mapping[str, Sequence[Box]]) -> Tensor:
    """The mask (1, H, W) of an image's boxes."""
    name = path.relative_to(folder).as_posix()
    if name not in boxes:
        raise DataError(f"{folder / 'boxes.csv'} has no box for {name}: give every test image one.")
    with Image.open(path) as image:
        width, height = image.size
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    for left, top, right, bottom in boxes[name]:
        mask[:, top:bottom, left:right] = True
    return mask


def _read_boxes(path: Path) -> Mapping[str, Sequence[Box]]:
    found: dict[str, list[Box]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            try:
                name, left, top, right, bottom = row
                found.setdefault(name, []).append((int(left), int(top), int(right), int(bottom)))
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}: {','.join(row)!r} is not FILE,left,top,right,bottom."
                ) from error
    return found


def _as_seen(mask: Tensor, stream: Stream) -> Tensor:
    """A mask (1, H, W) as its image is seen: resized, the middle of it."""
    if stream.side is not None:
        mask = square(mask.float(), stream.side) > 0.5
    return mask if stream.crop is None else centre_crop(mask, stream.crop)
