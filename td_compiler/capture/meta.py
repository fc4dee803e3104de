"""The door to the meta device, where tensors have shapes and no values: what is made there, and how it runs there.

Layers are made there `with META:` or with `device=META`; :func:`td_compiler.capture.skeleton.skeleton` is the copy of a
network that runs there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from td_compiler.capture.shapes import returned

__all__ = ["META", "ShapesOnly", "dtype_of", "empty_images", "is_meta", "on_meta", "without_values"]

META: Final = torch.device("meta")


def is_meta(item: Any) -> bool:
    """Whether something is the meta device."""
    return isinstance(item, torch.device) and item.type == META.type


def on_meta(value: Any) -> Any:
    """A tensor, or the tensors in a tuple or list, on the meta device; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value if value.is_meta else value.to(META)
    if type(value) in (tuple, list):
        return type(value)(on_meta(each) for each in value)
    return value


def without_values(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, type and strides, cut off from gradients; `empty_like` takes five times as long."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type of a network's first floating parameter; torch's default where it has none."""
    floating = (p.dtype for p in network.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


def empty_images(size: tuple[int, int, int], dtype: torch.dtype, count: int = 2) -> torch.Tensor:
    """Images (count, C, H, W) for a size (C, H, W)."""
    return torch.empty(count, *size, dtype=dtype, device=META)


class ShapesOnly(TorchFunctionMode):
    """A context in which operations on the meta device do no more than their shapes ask for.

    Torch breaks many operations on that device down into dozens of steps in Python, which took most of the time of
    reading a network. Without gradients, what :mod:`td_compiler.capture.shapes` knows is an empty tensor of a shape at
    once. With gradients, a batch norm scales and shifts its input, and no more. Shape, type, memory format and what
    gradients reach are torch's.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            made = returned(function, args, kwargs)
            return function(*args, **kwargs) if made is None else made
        traced = not args or not isinstance(args[0], torch.Tensor)  # a proxy stays in the graph as it is
        if function is not F.batch_norm or traced or not args[0].is_meta:
            return function(*args, **kwargs)
        given = dict(zip(_ARGUMENTS, args, strict=False)) | dict(kwargs)
        value: torch.Tensor = given["input"]
        shape = (1, -1, *(1,) * (value.dim() - 2))
        if given.get("weight") is not None:
            value = value * given["weight"].view(shape)
        if given.get("bias") is not None:
            value = value + given["bias"].view(shape)
        return value if value is not given["input"] else value.clone()


_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
