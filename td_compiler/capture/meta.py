"""Running networks on the meta device, for their shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from td_compiler.capture.shapes import returned

__all__ = ["ShapesOnly"]


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
