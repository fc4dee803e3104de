"""Copying modules, without the time that their many empty registries take."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["copy_module"]

M = TypeVar("M", bound=nn.Module)


def copy_module(module: M, instead: dict[int, Any] | None = None) -> M:
    """A deep copy of a module.

    A weight that a hook computed of other parameters, which torch refuses to copy, is copied as a plain value; the hook
    will compute it anew.

    Every module has a dozen registries of hooks, most of them empty. Copying those one by one takes more time than all
    the rest, so each is replaced by a new one of its kind.

    Args:
        module: what to copy.
        instead: what stands in the copy for an object of the original, by the original's `id`.
    """
    memo = dict(instead or {})
    for part in module.modules():
        for value in vars(part).values():
            if type(value) in (dict, OrderedDict) and not value:
                memo.setdefault(id(value), type(value)())
            elif isinstance(value, torch.Tensor) and not value.is_leaf:
                memo.setdefault(id(value), _computed(value, weightless=bool(instead)))
    return copy.deepcopy(module, memo)


def _computed(value: torch.Tensor, *, weightless: bool) -> torch.Tensor:
    if weightless:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return value.detach().clone()
