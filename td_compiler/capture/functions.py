"""Functions that are layers in all but name: `F.batch_norm(x, ..., self.weight, ...)` and its kin."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler.capture.captured import Capture
from td_compiler.capture.copying import copy_module
from td_compiler.capture.meta import META
from td_compiler.graph.notes import facts

__all__ = ["functions_as_layers"]


def functions_as_layers(captured: Capture) -> None:
    """`F.batch_norm(x, ..., self.weight, ...)` and its kin become plain layers at the path of their parameters.

    So a norm with an activation of its own is read as norm and activation, and follows the mode as any norm does.
    """
    made: set[str] = set()
    for node in captured.graph.nodes:
        make = _LAYERS_OF.get(node.target) if node.op == "call_function" else None
        if make is None:
            continue
        given = _arguments(node)
        path = str(getattr(given["weight"], "target", "")).rpartition(".")[0]
        if not path or path not in captured.modules or not _named_alike(given, path):
            continue
        layer = make(given)
        owner = captured.modules[path]
        for part in list(layer._parameters):
            layer._parameters[part] = getattr(owner, part, None)
        for part in list(layer._buffers):
            if hasattr(owner, part) or (given.get(part) is None and part in given):
                layer._buffers[part] = getattr(owner, part, None)
        captured.modules[path] = layer
        made.add(path)
        node.op, node.target, node.args, node.kwargs = "call_module", path, (given["input"],), {}
    _rename_children(captured, made)


def _named_alike(given: dict[str, Any], path: str) -> bool:
    """Whether a function reads its parameters from the names that a layer at a path would keep them under."""
    tensors = {name: given[name] for name in ("weight", "bias", "running_mean", "running_var") if name in given}
    return all(
        value is None or (isinstance(value, fx.Node) and value.op == "get_attr" and value.target == f"{path}.{name}")
        for name, value in tensors.items()
    )


def _arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name, defaults filled in; torch's own functions have no signature to ask."""
    if node.target in _BUILTIN_ARGUMENTS:
        defaults = _BUILTIN_ARGUMENTS[node.target]
        return defaults | dict(zip(defaults, node.args, strict=False)) | node.kwargs
    bound = _signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


@functools.cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


_BUILTIN_ARGUMENTS: dict[Any, dict[str, Any]] = {
    F.conv2d: {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    F.linear: {"input": None, "weight": None, "bias": None},
}


def _size_of(node: Any) -> torch.Size:
    size: torch.Size = facts(node).value.shape
    return size


def _batch_norm(given: dict[str, Any]) -> nn.Module:
    tracks = given["running_mean"] is not None
    size, momentum = _size_of(given["weight"])[0], given["momentum"]
    return copy_module(_norm(size, given["eps"], momentum, tracks))


@functools.lru_cache(64)
def _norm(size: int, eps: float, momentum: float | None, tracks: bool) -> nn.Module:
    return nn.BatchNorm2d(size, eps, momentum, track_running_stats=tracks, device=META)


def _conv(given: dict[str, Any]) -> nn.Module:
    outputs, inputs, height, width = _size_of(given["weight"])
    groups = given["groups"]
    return nn.Conv2d(
        inputs * groups, outputs, (height, width), given["stride"], given["padding"], given["dilation"], groups,
        bias=given["bias"] is not None, device=META,
    )  # fmt: skip


def _linear(given: dict[str, Any]) -> nn.Module:
    outputs, inputs = _size_of(given["weight"])
    return nn.Linear(inputs, outputs, given["bias"] is not None, device=META)


_LAYERS_OF: dict[Any, Callable[[dict[str, Any]], nn.Module]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: lambda given: nn.LayerNorm(_size_of(given["weight"]), given["eps"], device=META),
    F.group_norm: lambda given: nn.GroupNorm(
        given["num_groups"], _size_of(given["weight"])[0], given["eps"], device=META
    ),
    F.conv2d: _conv,
    F.linear: _linear,
}


def _rename_children(captured: Capture, made: set[str]) -> None:
    """What was a child of a module that is now a layer stands beside it: `bn1.act` -> `bn1_act`."""
    for node in captured.graph.find_nodes(op="call_module"):
        target = str(node.target)
        parents = itertools.accumulate(target.split(".")[:-1], "{}.{}".format)
        path = next((parent for parent in parents if parent in made), None)
        module = captured.modules[target]
        if path is not None and next(module.parameters(), None) is None:
            node.target = path + "_" + target[len(path) + 1 :].replace(".", "_")
            captured.modules[node.target] = module
