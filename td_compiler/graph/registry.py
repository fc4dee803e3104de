"""`register`: a row of the operator table for a layer or function of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from td_compiler.errors import ConversionError
from td_compiler.graph.operators import FUNCTIONS, LAYERS, METHODS, Kind, Operator, Width, layer_row

__all__ = ["register"]

Target = type[nn.Module] | Callable[..., Any] | str


def register(
    target: Target,
    kind: str | None = None,
    *,
    like: Target | None = None,
    width: str | None = None,
    axes: Mapping[str, tuple[str, ...]] | None = None,
    sizes: Mapping[str, str] | None = None,
    stride: Callable[..., tuple[int, int]] | None = None,
) -> None:
    """Tell the compiler what a layer, a function or a method of tensors does to scale and width.

    A class with a row becomes one operation and need not be declared a leaf; its subclasses have the row as well.

    Args:
        target: a class of modules, a function, or the name of a tensor method.
        kind: the role in a unit: "conv", "linear", "norm", "activation", "dropout", "pool", "global_pool", "pad",
            "join", "flatten", "identity".
        like: an operator that has a row, which this one starts from, e.g. `nn.BatchNorm2d`.
        width: how many channels come out: "equal" (as many as come in), "free" (the layer's choice), "sum", "flat",
            "none".
        axes: parameter or buffer name -> the widths along its leading axes: "in", "out", "in/groups".
        sizes: attribute of the layer -> "in" or "out": numbers that follow the widths.
        stride: (node, module) -> (height, width), the factor by which the map shrinks.

    Raises:
        ConversionError: if `like` has no row, or `kind` or `width` is none of those.
    """
    row = _row_of(like) if like is not None else None
    if row is None and (like is not None or kind is None):
        what = f"{getattr(like, '__name__', like)} has no row in the operator table" if like is not None else "no kind"
        raise ConversionError(f"register({getattr(target, '__name__', target)}): {what}: give kind= or another like=.")
    row = row or Operator(_member(Kind, kind))
    changes: dict[str, Any] = {
        "kind": _member(Kind, kind) if kind is not None else None,
        "width": _member(Width, width) if width is not None else None,
        "axes": axes,
        "sizes": sizes,
        "stride": stride,
    }
    row = replace(row, **{name: value for name, value in changes.items() if value is not None})
    if isinstance(target, str):
        METHODS[target] = row
    elif isinstance(target, type) and issubclass(target, nn.Module):
        LAYERS[target] = row
    else:
        FUNCTIONS[target] = row


def _row_of(like: Target) -> Operator | None:
    if isinstance(like, str):
        return METHODS.get(like)
    if isinstance(like, type) and issubclass(like, nn.Module):
        return layer_row(like.__new__(like))
    return FUNCTIONS.get(like)


def _member(kinds: Any, name: str | None) -> Any:
    try:
        return kinds[str(name).upper()]
    except KeyError:
        allowed = ", ".join(member.name.lower() for member in kinds)
        raise ConversionError(f"{kinds.__name__.lower()} {name!r} is none of {allowed}.") from None
