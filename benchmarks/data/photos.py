"""A single photograph as a data set, `photo:SIDE:FILE`: any image file, for pictures, not for accuracy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from td_compiler.benchmarks.data.datasets import DATASETS
from td_compiler.benchmarks.data.images import DataError, Images, Stream
from td_compiler.benchmarks.lab.machine import Machine

__all__ = ["UNKNOWN", "Photo"]

UNKNOWN = -1  # the label of an image whose class nobody has said


class Photo:
    """The row `photo:SIDE:FILE`: the square in the middle of an image file, SIDE pixels wide, in colour.

    A relative path is looked for in the current folder and in that of the data sets.
    """

    def title(self, argument: str) -> str:
        return Path(_parts(argument)[1]).stem

    def read(self, argument: str, machine: Machine, train: bool) -> Images:
        side, name = _parts(argument)
        return Stream((_found(name, machine),), torch.tensor([UNKNOWN]), (), side=side).gather()

    def fingerprint(self, argument: str, machine: Machine) -> str:
        side, name = _parts(argument)
        return f"{hashlib.sha256(_found(name, machine).read_bytes()).hexdigest()[:16]}-{side}"


def _found(name: str, machine: Machine) -> Path:
    path = next((path for path in (Path(name), machine.data_root / name) if path.is_file()), None)
    if path is None:
        raise DataError(f"There is no image {name}, neither here nor in {machine.data_root}: give the path of a file.")
    return path


def _parts(argument: str) -> tuple[int, str]:
    side, _, path = argument.partition(":")
    if not side.isdecimal() or not int(side) or not path:
        raise DataError(f"photo:{argument}: a photograph is named photo:SIDE:FILE, such as photo:224:dog.jpg.")
    return int(side), path


DATASETS["photo"] = Photo()
