"""The data sets as one table: how each is read, what it is called, where it lies.

A name is a key of the table, in some rows with an argument after a colon: `mnist`, `folder:PATH`,
`lowpass:8:fashion-mnist`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from td_compiler.benchmarks.data.images import DataError, Images, Stream, read_archive
from td_compiler.benchmarks.lab.machine import Machine

__all__ = [
    *("DATASETS", "DataError", "DataSet", "Derived", "Images", "Stream"),
    *("chosen", "fingerprint", "load", "opened", "test_files", "title"),
]


class DataSet(Protocol):
    """One row of the table; `argument` is what follows the colon in the name, or ""."""

    def title(self, argument: str) -> str:
        """What tables call it."""

    def read(self, argument: str, machine: Machine, train: bool) -> Images | Stream:
        """The training or the test images; raises DataError."""

    def fingerprint(self, argument: str, machine: Machine) -> str:
        """What identifies the data's content; raises DataError if it is missing."""


def load(name: str, machine: Machine, *, train: bool, limit: int | None = None) -> Images:
    """A data set in memory; test images as networks see them.

    Args:
        name: of the data set.
        machine: where data sets are, and whether to download them.
        train: the training images, else the test images.
        limit: take a choice of so many images, always the same one.

    Raises:
        DataError: if the data set is unknown, missing, damaged or too large for memory.
    """
    data = opened(name, machine, train=train, limit=limit)
    if isinstance(data, Stream):
        raise DataError(f"{name} has {len(data):,} images, too many for memory: limit their number.")
    return data if train else data.cropped()


@functools.lru_cache(maxsize=4)
def opened(name: str, machine: Machine, *, train: bool, limit: int | None = None) -> Images | Stream:
    """As `load`, but data that does not fit in memory is read as it is needed, and nothing is cropped."""
    row, argument = _row(name)
    data = row.read(argument, machine, train)
    if limit is not None and limit < len(data):
        data = data.subset(chosen(len(data), limit))
    return data.gather() if isinstance(data, Stream) and data.fits_in_memory else data


def chosen(count: int, limit: int) -> torch.Tensor:
    """The indices of those images that a limit leaves, of so many."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit]


def test_files(name: str, machine: Machine) -> Stream:
    """The files of a folder's test images.

    Raises:
        DataError: if there are none, as in an archive.
    """
    row, argument = _row(name)
    data = row.read(argument, machine, False)
    if not isinstance(data, Stream):
        raise DataError(f"{name} is not a folder of image files: unpack it.")
    return data


@functools.lru_cache(maxsize=64)
def fingerprint(name: str, machine: Machine) -> str:
    """A hash of a data set's content, part of the key of every result from it.

    Raises:
        DataError: if the data set is unknown or missing.
    """
    row, argument = _row(name)
    return row.fingerprint(argument, machine)


def title(name: str) -> str:
    """What tables call a data set: `CIFAR-10 (JPEG)`."""
    row, argument = _row(name)
    return row.title(argument)


def _row(name: str) -> tuple[DataSet, str]:
    key, _, argument = name.partition(":")
    if key not in DATASETS:
        for module in _PROVIDERS:
            importlib.import_module(module)
    if key not in DATASETS:
        close = difflib.get_close_matches(key, DATASETS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise DataError(f"There is no data set {name!r}, only {', '.join(DATASETS)}.{hint}")
    return DATASETS[key], argument


@dataclass(frozen=True)
class Torchvision:
    """A data set that torchvision reads as a whole.

    Attributes:
        name, titled: the key and the name in tables.
        reader: its class in `torchvision.datasets`.
        folder: where its files lie under the root.
    """

    name: str
    titled: str
    reader: str
    folder: str

    def title(self, argument: str) -> str:
        return self.titled

    def read(self, argument: str, machine: Machine, train: bool) -> Images:
        _no_argument(self.name, argument)
        found = self._found(machine, train)
        pixels, labels = torch.as_tensor(found.data), torch.as_tensor(found.targets)
        images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        return Images(images, labels, tuple(found.classes))

    def fingerprint(self, argument: str, machine: Machine) -> str:
        self._found(machine, train=True)
        return _hash_files(machine.data_root / self.folder)

    def _found(self, machine: Machine, train: bool) -> Any:
        import torchvision

        folder = machine.data_root / self.folder
        if not machine.download and not folder.is_dir():
            raise DataError(
                f"There is no {self.name} in {folder}: give its folder with --data-root, or add --download."
            )
        try:
            reader = getattr(torchvision.datasets, self.reader)
            return reader(str(machine.data_root), train=train, download=machine.download)
        except Exception as error:  # a reader meets damaged files with whatever its parser raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{self.name} in {folder} cannot be read ({reason}): remove it and --download it."
            ) from error


@dataclass(frozen=True)
class ImageFolder:
    """A folder `FOLDER/{train,test or val}/CLASS/*` of image files, or `FOLDER.tar.gz` of one.

    Attributes:
        name, titled: the key and the name in tables.
        folder: where it lies under the root; None: the name's argument is its path.
        side: what the images' short sides are resized to; None: they stay as they are.
        crop: the side of the square that networks see.
        reader: the class in `torchvision.datasets` that downloads it, with its arguments.
    """

    name: str
    titled: str
    folder: str | None
    side: int | None = None
    crop: int | None = None
    reader: tuple[str, tuple[tuple[str, str], ...]] | None = None

    def title(self, argument: str) -> str:
        return Path(argument.partition("@")[0]).name if self.folder is None else self.titled

    def read(self, argument: str, machine: Machine, train: bool) -> Images | Stream:
        row, folder = self._at(argument), self._found(argument, machine)
        if folder.is_dir():
            held_out = "test" if (folder / "test").is_dir() else "val"
            return Stream.of_folder(folder, row.side, row.crop, "train" if train else held_out)
        return read_archive(folder, "train" if train else "test")

    def fingerprint(self, argument: str, machine: Machine) -> str:
        row = self._at(argument)
        return f"{_hash_files(self._found(argument, machine))}-{row.side}-{row.crop}"

    def _at(self, argument: str) -> ImageFolder:
        """This row with the size that the argument of `folder:PATH@SIZE` gives: crops of images somewhat larger."""
        size = argument.partition("@")[2]
        if not size:
            return self
        if not size.isdecimal() or not int(size):
            raise DataError(f"{self.name}:{argument}: after @ comes the side of the images in pixels, such as @128.")
        return replace(self, crop=int(size), side=round(int(size) * 156 / 128))

    def _found(self, argument: str, machine: Machine) -> Path:
        """The folder, or the archive."""
        if self.folder is not None:
            _no_argument(self.name, argument)
        folder = machine.data_root / self.folder if self.folder else Path(argument.partition("@")[0])
        archive = folder.with_name(f"{folder.name}.tar.gz")
        if folder.is_dir() or not (archive.is_file() or (self.reader and machine.download)):
            if not (folder / "train").is_dir():
                get = ", or add --download" if self.reader else ""
                raise DataError(
                    f"There is no {self.name} in {folder}: give a folder with train/CLASS/ and test/CLASS/ (or "
                    f"val/CLASS/) in it, by {'folder:PATH' if self.folder is None else '--data-root'}{get}."
                )
            return folder
        if self.reader and not archive.is_file():
            self._download(machine)
            return folder
        return archive

    def _download(self, machine: Machine) -> None:
        import torchvision

        assert self.reader is not None
        name, arguments = self.reader
        getattr(torchvision.datasets, name)(str(machine.data_root), download=True, **dict(arguments))


@dataclass(frozen=True)
class Derived:
    """A data set made from another one: `KEY:ARGUMENT:BASE`, e.g. `lowpass:8:fashion-mnist`.

    Attributes:
        titled: the name in tables, from the argument and the base's title.
        change: makes it from the base's images and the argument, for training (True) or testing; raises DataError.
        revision: raised when `change` would now make other images.
    """

    titled: Callable[[str, str], str]
    change: Callable[[Images, str, bool], Images]
    revision: int = 1

    def title(self, argument: str) -> str:
        value, base = _split(argument)
        return self.titled(value, title(base))

    def read(self, argument: str, machine: Machine, train: bool) -> Images:
        value, base = _split(argument)
        return self.change(load(base, machine, train=train), value, train)

    def fingerprint(self, argument: str, machine: Machine) -> str:
        value, base = _split(argument)
        return f"{fingerprint(base, machine)}-{value}-{self.revision}"


def _split(argument: str) -> tuple[str, str]:
    value, colon, base = argument.partition(":")
    if not colon:
        raise DataError(f"{argument!r}: a data set that is made from another one ends in :NAME of that.")
    return value, base


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise DataError(f"{name} takes no argument, so {name}:{argument} names no data set.")


def _hash_files(path: Path) -> str:
    """A hash of the contents of a file or a folder; of names, sizes and times where that would take minutes."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    states = [file.stat() for file in files]
    digest, small = hashlib.sha256(), sum(state.st_size for state in states) <= _SMALL
    for file, state in zip(files, states, strict=True):
        digest.update(f"{file.relative_to(path.parent)} {state.st_size}\n".encode())
        if small:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        else:
            digest.update(f"{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


_SMALL = 2**30  # bytes
_IMAGENETTE = ("Imagenette", (("size", "160px"),))

DATASETS: dict[str, DataSet] = {
    "mnist": Torchvision("mnist", "MNIST", "MNIST", "MNIST/raw"),
    "fashion-mnist": Torchvision("fashion-mnist", "Fashion-MNIST", "FashionMNIST", "FashionMNIST/raw"),
    "cifar10": Torchvision("cifar10", "CIFAR-10", "CIFAR10", "cifar-10-batches-py"),
    "cifar10-jpeg": ImageFolder("cifar10-jpeg", "CIFAR-10 (JPEG)", "cifar10-jpeg"),
    "imagenette": ImageFolder("imagenette", "Imagenette", "imagenette2-160", 156, 128, _IMAGENETTE),
    "imagenet": ImageFolder("imagenet", "ImageNet", "imagenet", 256, 224),
    "folder": ImageFolder("folder", "", None),
}
# Modules that add rows to the table when they are imported.
_PROVIDERS = (
    "td_compiler.benchmarks.data.frequencies",
    "td_compiler.benchmarks.data.meshes",
    "td_compiler.benchmarks.data.photos",
    "td_compiler.benchmarks.data.canvases",
    "td_compiler.benchmarks.data.channels",
)
