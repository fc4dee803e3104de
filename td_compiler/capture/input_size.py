"""At which image size a network is to be read, where nobody says so: its own metadata, else by trying."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from td_compiler.capture.capture import Capture, RefusedImages, capture
from td_compiler.errors import ConversionError

__all__ = ["check_is_cnn", "declared_input_size", "find_input_size"]

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
    if declared is not None:
        return capture(model, declared), declared, ""
    first_error: ConversionError | None = None
    for size in _candidates(model):
        try:
            note = f"The input size {'x'.join(map(str, size))} was found by trying: give input_size= for another."
            return capture(model, size), size, note
        except RefusedImages as error:
            first_error = first_error or error
    raise ConversionError(f"no square image size from 8 to 512 fits: {first_error}")


def _candidates(model: nn.Module) -> Iterator[tuple[int, int, int]]:
    channels = list(
        dict.fromkeys(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels <= 12)
    )
    for side in _SIDES:
        for count in channels or [3]:
            yield count, side, side


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
