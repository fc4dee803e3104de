"""Weights from a file, for a network that has all of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from td_compiler.cli.requests import UsageError
from td_compiler.network.checkpoints import read_checkpoint

__all__ = ["load_weights"]


def load_weights(network: nn.Module, path: Path, option: str = "--weights") -> dict[str, torch.Tensor]:
    """Load a checkpoint whose tensors are the network's own, each by its name and shape.

    A prefix that stands before all names, as DataParallel and training frameworks leave one, is taken off.

    Args:
        network: the network, which gets the values.
        path: a state_dict or a dictionary with one, as torch writes it (it is read with `weights_only=True`) or
            safetensors.
        option: which option names it, for errors.

    Returns:
        What stands beside the network under a training program's names: `normalise.mean`, for example.

    Raises:
        UsageError: if there is no such file, or it is another network's.
        ConversionError: if it cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file.")
    given = read_checkpoint(path)
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    prefix = _prefix(list(given), list(own))
    beside = {name: value for name, value in given.items() if not name.startswith(prefix)}
    given = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    reason = _misfit(given, own)
    if reason:
        kind = type(network).__name__
        raise UsageError(f"{option} {path} does not fit {kind}: {reason}; give a checkpoint of this very network.")
    network.load_state_dict(given, strict=False)  # what is missing is a counter of batches
    return beside


def _misfit(given: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> str:
    """Why a state_dict is another network's; "" where it fits."""
    for name, value in own.items():
        if name not in given and not name.endswith("num_batches_tracked"):
            return f"it has no {name}"
        if name in given and given[name].shape != value.shape:
            return f"its {name} has the shape {tuple(given[name].shape)}, not {tuple(value.shape)}"
    return next((f"the network has no {name}" for name in given if name not in own), "")


def _prefix(given: list[str], own: list[str]) -> str:
    """What stands before the network's first name in a checkpoint."""
    found = (name.removesuffix(own[0]) for name in given if name == own[0] or name.endswith(f".{own[0]}"))
    return min(found, key=len, default="")
