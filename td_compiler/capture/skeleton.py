"""The weightless copy of a network that runs in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from td_compiler.capture.copying import copy_module
from td_compiler.capture.meta import without_values
from td_compiler.capture.recording import Parameter, Value
from td_compiler.errors import ConversionError

__all__ = ["refuse_scripts", "skeleton", "unwrap_parts", "unwrapped", "weightless"]


def unwrapped(model: nn.Module) -> nn.Module:
    """The network behind `torch.compile` or data parallelism."""
    while True:
        if type(model).__name__ == "OptimizedModule" and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def unwrap_parts(network: nn.Module) -> None:
    """Take every part of a network out from behind `torch.compile` and data parallelism, in place."""
    for module in network.modules():
        if module._compiled_call_impl is not None:
            module._compiled_call_impl = None
        for name, child in module._modules.items():
            if child is not None and (inner := unwrapped(child)) is not child:
                module._modules[name] = inner


def skeleton(model: nn.Module) -> nn.Module:
    """A deep copy of a model in evaluation mode whose parameters and buffers are on the meta device.

    No weight is copied or read, so this costs the memory of the module objects alone.
    """
    return weightless(model)[0]


def weightless(model: nn.Module) -> tuple[nn.Module, dict[int, Value]]:
    """The skeleton, and what the tensors of both model and skeleton are, by `id`."""
    weightless: dict[int, Any] = {}
    values: dict[int, Value] = {}
    for path, parameter in model.named_parameters():
        weightless[id(parameter)] = nn.Parameter(without_values(parameter), parameter.requires_grad)
        values[id(parameter)] = Parameter(path.replace("_orig_mod.", ""))
    for module in model.modules():
        for value in vars(
            module
        ).values():  # what an old weight_norm computes before every run cannot be copied as it is
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                weightless[id(value)] = without_values(value)
    for path, buffer in model.named_buffers():
        weightless[id(buffer)] = without_values(buffer)
        values[id(buffer)] = Parameter(path.replace("_orig_mod.", ""))
    values |= {id(tensor): values[key] for key, tensor in weightless.items() if key in values}
    bones = copy_module(model, weightless).eval()
    unwrap_parts(bones)
    return bones, values


def refuse_scripts(model: nn.Module) -> None:
    """Refuse modules of TorchScript, which have no Python to run.

    Raises:
        ConversionError: naming the module.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"{path!r} is" if path else "the network is"
            raise ConversionError(
                f"{where} a TorchScript module, which cannot be read: hand over the module that it was scripted from."
            )
