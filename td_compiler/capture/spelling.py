"""One spelling for what torch can be asked for in several ways: that of the operator table and of emitted source."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

__all__ = ["in_place", "is_random", "spelled", "works_in_place"]

_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "subtract": operator.sub,
    "mul": operator.mul,
    "multiply": operator.mul,
    "div": operator.truediv,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "pow": operator.pow,
    "neg": operator.neg,
    "matmul": operator.matmul,
    "__getitem__": operator.getitem,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_REFLECTED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rpow__": operator.pow,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
    "rsub": operator.sub,
}
_RANDOM = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial"),
    *("normal", "poisson", "binomial", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "rrelu"),
    *("feature_alpha_dropout", "feature_dropout", "uniform", "exponential", "random", "geometric", "cauchy"),
    *("log_normal", "gumbel_softmax", "fractional_max_pool2d", "native_dropout"),
}
_KEPT_IN_PLACE = {"fill_", "zero_", "copy_", "set_", "requires_grad_", "detach_", "resize_", "resize_as_"}


def is_random(name: str) -> bool:
    """Whether a function of a name draws random numbers."""
    return name in _RANDOM or name.rstrip("_") in _RANDOM


def in_place(function: Callable[..., Any], name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a call overwrites its first argument."""
    return (name.endswith("_") and not name.endswith("__")) or name in _ITEMS or kwargs.get("inplace") is True


_ITEMS = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imatmul__", "__ipow__"}


def spelled(
    function: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any], *, keep: bool = False
) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]]:
    """(op, target, args, kwargs) of the node for a call of torch.

    Operators are Python's own, methods go by their name, and nothing works in place any more: what reads a tensor
    after it was overwritten reads the operation's result, so that no one can overwrite what others still read.

    Args:
        function: what was called, as a `TorchFunctionMode` is told.
        name: its name; of an attribute, the attribute's.
        keep: leave operations in place as they are, since drawing numbers has no other form.
    """
    if getattr(function, "__name__", "") == "__get__":
        return "call_function", getattr, (args[0], name), {}
    if kwargs.get("inplace") is True:
        kwargs = {**kwargs, "inplace": False}
    if not keep and (plain := _out_of_place(name)) is not None:
        if name.startswith("__"):
            return "call_function", _OPERATORS[plain], tuple(args), kwargs
        name, function = plain, getattr(torch.Tensor, plain)
    is_method = getattr(torch.Tensor, name, None) is function or (
        getattr(function, "__objclass__", None) is not None and hasattr(torch.Tensor, name)
    )
    special = function is getattr(torch.Tensor, f"__{name}__", None)  # of `x ** 2` torch says that it is called pow
    if name in _OPERATORS and not kwargs and (is_method or special or name == "__getitem__"):
        return "call_function", _OPERATORS[name], tuple(args), {}
    if name in _REFLECTED and not kwargs and len(args) == 2:
        return "call_function", _REFLECTED[name], (args[1], args[0]), {}
    if is_method:
        return "call_method", name, tuple(args), kwargs
    if (own := getattr(torch.nn.functional, name, None)) is not None and name.endswith("_"):
        function = getattr(torch.nn.functional, name[:-1], own)
    return "call_function", function, tuple(args), kwargs


def _out_of_place(name: str) -> str | None:
    if name in _ITEMS:
        return {"itruediv": "div", "ifloordiv": "floor_divide", "imatmul": "matmul", "ipow": "pow"}.get(
            name.strip("_"), name.strip("_")[1:]
        )
    if not name.endswith("_") or name.endswith("__") or name in _KEPT_IN_PLACE:
        return None
    return name[:-1] if hasattr(torch.Tensor, name[:-1]) else None


def works_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an operation overwrites its first input."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = str(getattr(node.target, "__name__", ""))
    return node.kwargs.get("inplace") is True or node.target is operator.iadd or name.endswith("_")
