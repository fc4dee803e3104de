"""Modules that are not looked into: layers of torch's own, and what users declare."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from td_compiler.graph.operators import layer_row

__all__ = ["is_declared_leaf", "is_leaf", "leaf"]

T = TypeVar("T", bound=type[nn.Module])
_LEAVES: set[type[nn.Module]] = set()


def leaf(module_class: T) -> T:
    """Declare that a module class is not to be looked into but kept whole; usable as a decorator, valid for subclasses.

    A leaf must not change the size of the map, and works only where its input keeps the width that it was made for,
    unless the operator table has a row for it (:mod:`td_compiler.graph.operators`). Its control flow may depend on the
    values of tensors.
    """
    _LEAVES.add(module_class)
    return module_class


def is_declared_leaf(module: nn.Module) -> bool:
    """Whether a user declared the class of a module, or a base of it, a leaf."""
    return not _LEAVES.isdisjoint(type(module).__mro__)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module becomes one operation: a layer of torch, a layer with a row in the table, or a declared leaf."""
    if is_declared_leaf(module):
        return True
    children = module._modules.keys() - {"parametrizations"}
    if layer_row(module) is not None and not children:
        return True
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, _CONTAINERS)


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
