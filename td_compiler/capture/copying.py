"""Copying modules, without the time that `copy.deepcopy` takes for what cannot change."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import nn

from td_compiler.capture.meta import without_values
from td_compiler.graph.names import is_written

__all__ = ["copy_module"]

M = TypeVar("M", bound=nn.Module)

_FIXED = {int, float, bool, str, bytes, complex, type(None), type, torch.dtype, torch.device, torch.Size, range}


def copy_module(module: M, instead: dict[int, Any] | None = None) -> M:
    """A deep copy of a module.

    A module is two dozen attributes, most of them numbers and empty registries of hooks. What `copy.deepcopy` does for
    each of them takes more time than all the rest, so modules are copied attribute by attribute, and `deepcopy` is
    asked for what is neither a number nor empty.

    A weight that a hook computed of other parameters, which torch refuses to copy, is copied as a plain value; the hook
    will compute it anew.

    Args:
        module: what to copy.
        instead: what stands in the copy for an object of the original, by the original's `id`.
    """
    memo = dict(instead or {})
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo.setdefault(id(value), _computed(value, weightless=bool(instead)))
    made: M = _copy(module, memo)
    return made


def _copy(item: Any, memo: dict[int, Any]) -> Any:
    kind = type(item)
    if kind in _FIXED or (kind is tuple and _FIXED.issuperset(map(type, item))):
        return item
    if id(item) in memo:
        return memo[id(item)]
    if (kind is nn.Parameter or kind is torch.Tensor) and item.is_meta and not item.__dict__ and item.is_leaf:
        made: Any = without_values(item)
        memo[id(item)] = made = nn.Parameter(made, item.requires_grad) if kind is nn.Parameter else made
        return made.requires_grad_(item.requires_grad)
    if kind is set and _FIXED.issuperset(map(type, item)):
        return set(item)
    if kind is dict or kind is OrderedDict:
        made = kind()
        memo[id(item)] = made
        for key, value in item.items() if item else ():
            made[key if type(key) in _FIXED else copy.deepcopy(key, memo)] = _copy(value, memo)
        return made
    if isinstance(item, nn.Module) and _is_plain(type(item)):  # type: ignore[arg-type]  # a class has a hash too
        made = object.__new__(kind)  # as the class itself makes them: `_is_plain`
        memo[id(item)] = made
        attributes = made.__dict__
        for name, value in vars(item).items():
            of = type(value)
            if of in _FIXED:
                attributes[name] = value
            elif of is OrderedDict and not value and id(value) not in memo:  # a dozen in every module
                attributes[name] = memo[id(value)] = OrderedDict()
            else:
                attributes[name] = _copy(value, memo)
        return made
    return copy.deepcopy(item, memo)


@functools.cache
def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether a class is copied as any object is, by its attributes."""
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
    if is_written(kind):
        return True
    inherited = all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in own)
    of_torch = kind.__setstate__.__module__.startswith("torch.nn.")  # those only fill in what old files lack
    return inherited and of_torch and kind.__new__ is object.__new__


def _computed(value: torch.Tensor, *, weightless: bool) -> torch.Tensor:
    return without_values(value) if weightless else value.detach().clone()
