"""Copying modules, without the time that their many empty registries take."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

from torch import nn

__all__ = ["copy_module"]

M = TypeVar("M", bound=nn.Module)


def copy_module(module: M, instead: dict[int, Any] | None = None) -> M:
    """A deep copy of a module.

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
    return copy.deepcopy(module, memo)
