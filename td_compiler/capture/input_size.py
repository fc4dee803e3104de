"""At which image size a network is to be read, where nobody says so: its own metadata, else by trying."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from td_compiler.capture.capture import RefusedImages, capture
from td_compiler.capture.captured import Capture
from td_compiler.capture.meta import dtype_of, empty_images
from td_compiler.capture.skeleton import skeleton
from td_compiler.errors import ConversionError

__all__ = ["check_is_cnn", "declared_input_size", "find_input_size", "with_own_channels"]

Size = tuple[int, int, int]

# The usual sizes first; then what flatten heads of small networks were made for.
_USUAL = (224, 32, 28, 64, 299, 256, 128, 96, 112, 384, 512, 227, 160, 192, 48, 56, 84, 100, 150, 200, 300, 320, 331)
_SIDES = (*_USUAL, *(side for side in range(8, 257) if side not in _USUAL))


def declared_input_size(model: nn.Module) -> tuple[int, int, int] | None:
    """(C, H, W) from the model's `input_size` attribute or timm's configuration, None if it has neither."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = getattr(model, "input_size", None) or (config.get("input_size") if isinstance(config, dict) else None)
    if isinstance(size, (tuple, list)) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size):
        return size[0], size[1], size[2]
    return None


def find_input_size(model: nn.Module) -> tuple[Capture, tuple[int, int, int], str]:
    """Capture a model at the size that it declares, else at the first usual one that it takes.

    Returns the capture, the size (C, H, W) and a note for the report, "" if the model declared the size.

    Raises:
        ConversionError: if no size fits; the reason is the one for the first size tried.
    """
    check_is_cnn(model)
    declared = declared_input_size(model)
    likeliest = declared or (3, _SIDES[0], _SIDES[0])
    try:  # which most networks read: only where they do not is the number of channels looked for
        return capture(model, likeliest), likeliest, "" if declared else _found_by_trying(likeliest)
    except Exception as error:  # whatever images of a wrong number of channels lead to
        refused = error
    if declared is not None:
        size = with_own_channels(model, declared)
        if size == declared:
            raise refused
        return (
            capture(model, size),
            size,
            f"The network says that it reads {_times(declared)}, and reads {_times(size)}.",
        )
    first_error: ConversionError | None = None
    for size in _candidates(model):
        try:
            if size == likeliest:
                raise refused
            return capture(model, size), size, _found_by_trying(size)
        except RefusedImages as error:
            first_error = first_error or error
    raise ConversionError(f"no square image size from 8 to 512 fits: {first_error}")


def _found_by_trying(size: Size) -> str:
    return f"The input size {_times(size)} was found by trying: give input_size= for another."


def _times(size: Size) -> str:
    return "x".join(map(str, size))


def _candidates(model: nn.Module) -> Iterator[Size]:
    counts = _channels(model, (3, _SIDES[0], _SIDES[0]))
    if not counts:
        few = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels <= 12)
        counts = list(dict.fromkeys(few)) or [3]
    for side in _SIDES:
        for count in counts:
            yield count, side, side


def with_own_channels(model: nn.Module, size: Size) -> Size:
    """A size (C, H, W) with as many channels as the network's first convolution reads, where that can be seen."""
    counts = _channels(model, size)
    return (counts[0], *size[1:]) if counts else size


def _channels(model: nn.Module, size: Size) -> list[int]:
    """The channel count of `size` if the first convolution takes what becomes of it, else one that it takes; or none.

    What comes in may be another count than the image's: a grey one that is repeated.
    """
    bones = skeleton(model)
    seen: list[tuple[int, int]] = []
    for module in bones.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda conv, inputs: _look(seen, conv, inputs))
    dtype = dtype_of(bones)
    waiting = [size[0]]
    for tried in range(4):
        if tried == len(waiting):
            break
        count = waiting[tried]
        seen.clear()
        with contextlib.suppress(Exception), torch.no_grad():
            bones(empty_images((count, *size[1:]), dtype))
        if not seen:
            continue
        comes, reads = seen[0]
        if comes == reads:
            return [count]
        waiting += [other for other in (reads, count * reads // comes) if other > 0 and other not in waiting]
    return []


def _look(seen: list[tuple[int, int]], conv: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Note the channels that come into the first convolution that runs, and those that it reads, and go no further."""
    if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].dim() == 4:
        seen.append((inputs[0].shape[1], int(conv.in_channels)))  # type: ignore[arg-type]
        raise _Seen


class _Seen(Exception):
    """Enough of the network has run."""


def check_is_cnn(model: nn.Module) -> None:
    """Refuse at the door what has no 2D convolution.

    Raises:
        ConversionError: naming what the model has instead.
    """
    modules = list(model.modules())
    if any(isinstance(m, nn.Conv2d) for m in modules):
        return
    others = sorted({type(m).__name__ for m in modules if isinstance(m, (nn.Conv1d, nn.Conv3d))})
    if others:
        raise ConversionError(
            f"the network has {' and '.join(others)} but no Conv2d: only CNNs on images (N, C, H, W) convert."
        )
    raise ConversionError("the network has no 2D convolution: only CNNs have a top-down counterpart.")
