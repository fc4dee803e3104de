"""The options of a conversion, checked at the door."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from td_compiler.errors import ConversionError
from td_compiler.layers.pyramid import Downsample

__all__ = ["Downsampler", "Filters", "Head", "Init", "Merge", "Options", "Stem", "Task", "Upsample"]

Filters = Literal["mirror", "uniform", "reversed"]
Merge = Literal["combined", "add", "concat"]
Upsample = Literal["nearest", "bilinear", "transposed"]
Stem = Literal["trailing", "leading"]
Head = Literal["full", "pooled"]
Init = Literal["keep", "fresh"]
Task = Literal["classification", "segmentation"]
_LARGEST = 2**20  # of a channel count, height or width: beyond it torch cannot count a map's values
Downsampler = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of :func:`td_compiler.reverse`; see there for what each means.

    Raises:
        ConversionError: if a value is not among the allowed ones.
    """

    filters: Filters = "mirror"
    merge: Merge = "combined"
    upsample: Upsample = "nearest"
    downsample: Downsample | Downsampler = "gaussian"
    stem: Stem = "trailing"
    head: Head = "full"
    head_width: int | None = None
    init: Init = "keep"
    task: Task = "classification"
    num_classes: int | None = None
    in_chans: int | None = None
    fast: bool = True
    input_size: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        choices = {
            **{"filters": Filters, "merge": Merge, "upsample": Upsample, "stem": Stem},
            **{"head": Head, "init": Init, "task": Task},
        }
        for name, allowed in choices.items():
            _check_choice(name, getattr(self, name), get_args(allowed))
        if not callable(self.downsample):
            _check_choice("downsample", self.downsample, get_args(Downsample), or_else="a callable (images, factor)")
        if self.head_width is not None and not _positive(self.head_width):
            raise ConversionError(f"head_width={self.head_width!r} must be a positive number of filters or None.")
        self._check_classes()
        if self.in_chans is not None and not _positive(self.in_chans):
            raise ConversionError(f"in_chans={self.in_chans!r} must be a positive number of channels or None.")
        if not isinstance(self.fast, bool):
            raise ConversionError(f"fast={self.fast!r} must be True or False.")
        if self.input_size is not None:
            size = self.input_size
            if not isinstance(size, (tuple, list)) or len(size) != 3 or not all(map(_positive, size)):
                raise ConversionError(
                    f"input_size={size!r} must be three positive numbers (C, H, W), e.g. (3, 224, 224)."
                )
            if max(size) > _LARGEST:
                largest = max(size) if max(size) < 10**12 else "a number of more than 12 digits"
                raise ConversionError(f"input_size has {largest}: C, H and W are at most {_LARGEST:,}.")
            object.__setattr__(self, "input_size", tuple(size))

    def _check_classes(self) -> None:
        none = self.num_classes is None or (type(self.num_classes) is int and self.num_classes == 0)
        if self.task == "classification" and not none and not _positive(self.num_classes):
            raise ConversionError(
                f"num_classes={self.num_classes!r} must be a number of classes, 0 for none, or None for the source's."
            )
        if self.task == "segmentation" and not _positive(self.num_classes):
            raise ConversionError(
                f"num_classes={self.num_classes!r} must be a positive number for task='segmentation', e.g. 12."
            )


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_choice(name: str, value: Any, allowed: tuple[str, ...], or_else: str = "") -> None:
    if isinstance(value, str) and value in allowed:
        return
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(allowed) + (f", or {or_else}" if or_else else "")
    raise ConversionError(f"{name}={value!r} is not one of {listed}.{hint}")
