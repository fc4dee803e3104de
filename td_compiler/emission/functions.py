"""How a node that calls a function or a method is written: operators as operators, defaults left out."""

from __future__ import annotations

import builtins
import functools
import inspect
import math
import operator
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx

from td_compiler.emission.carry import Carrier, Importer
from td_compiler.emission.layout import Doc, Join, call, literal
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import plan

__all__ = ["Form", "write_call"]

Form = Literal["atom", "operator", "inplace"]
"""What a written call is: an atom needs no brackets anywhere, an operator may, `inplace` is a statement (`x += y`)."""

_BINARY: dict[Callable[..., Any], str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.matmul: "@",
    operator.pow: "**",
    operator.and_: "&",
    operator.or_: "|",
    operator.xor: "^",
    operator.lt: "<",
    operator.le: "<=",
    operator.eq: "==",
    operator.ne: "!=",
    operator.gt: ">",
    operator.ge: ">=",
}
_INPLACE: dict[Callable[..., Any], str] = {
    operator.iadd: "+=",
    operator.isub: "-=",
    operator.imul: "*=",
    operator.itruediv: "/=",
    operator.ifloordiv: "//=",
    operator.imatmul: "@=",
    operator.ipow: "**=",
}
_UNARY: dict[Callable[..., Any], str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}
_NAMESPACES = (
    ("F", F),
    ("torch", torch),
    ("torch.linalg", torch.linalg),
    ("torch.special", torch.special),
    ("torch.fft", torch.fft),
    ("math", math),
)


def write_call(node: fx.Node, carrier: Carrier) -> tuple[Doc, Form]:
    """The expression of a `call_function` or `call_method` node, and its form.

    Raises:
        ConversionError: if the function is not torch's and its source cannot be carried over.
    """
    args, kwargs = carrier.operands(node)
    if node.op == "call_method":
        receiver, *rest = args
        return call(Join((literal(receiver), f".{node.target}")), *map(literal, rest), **_literals(kwargs)), "atom"
    assert callable(node.target)
    operands = [literal(arg) for arg in args]
    if node.target in _UNARY:
        return Join((_UNARY[node.target], operands[0])), "operator"
    if node.target in _BINARY:
        sign = _BINARY[node.target]
        space = "" if sign == "**" else " "  # the formatter's way with powers of names and numbers
        return Join((operands[0], f"{space}{sign}{space}", operands[1])), "operator"
    if node.target in _INPLACE:
        return Join((operands[0], f" {_INPLACE[node.target]} ", operands[1])), "inplace"
    if node.target is operator.getitem:
        return Join((operands[0], "[", _index(args[1]), "]")), "atom"
    if node.target is builtins.getattr and len(args) == 2:
        return Join((operands[0], f".{args[1]}")), "atom"
    name = _function_name(node.target, plan(node).unit or node.name, carrier)
    args, kwargs = _without_defaults(node.target, args, kwargs)
    roles = _positional(node.target)
    written = [literal(arg, role) for arg, role in zip_longest(args, roles[: len(args)], fillvalue="")]
    return call(name, *written, **_literals(kwargs)), "atom"


def _literals(kwargs: dict[str, Any]) -> dict[str, Doc]:
    return {name: literal(value, name) for name, value in kwargs.items()}


def _index(index: Any) -> Doc:
    if not isinstance(index, tuple) or not index:
        return literal(index)
    parts: list[Doc] = [literal(index[0])]
    for item in index[1:]:
        parts += [", ", literal(item)]
    return Join(tuple(parts))


def _function_name(function: Callable[..., Any], where: str, carrier: Carrier) -> str:
    name = getattr(function, "__name__", "")
    for prefix, namespace in _NAMESPACES:
        short = name.removeprefix(f"{prefix.rpartition('.')[2]}_")  # torch.linalg.norm is called linalg_norm
        for known in (name, short):
            if getattr(namespace, known, None) is function:
                return f"{prefix}.{known}"
    if getattr(builtins, name, None) is function:
        return name
    if getattr(function, "__module__", None) in ("_operator", "operator") and not isinstance(carrier, Importer):
        raise ConversionError(f"{where}: operator.{name} has no form in emitted source; write it with torch functions.")
    return carrier.carry(function, where)


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature, seen through torch's dispatch on a boolean (`F.max_pool2d`); None where C code has none."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    if all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
        plain = getattr(F, f"_{getattr(function, '__name__', '')}", None)
        return inspect.signature(plain) if callable(plain) else None
    return signature


def _positional(function: Callable[..., Any]) -> list[str]:
    """The names of the parameters that a function takes by position, as far as they are known."""
    if function is torch.permute:  # C code, which has no signature
        return ["input", "dims"]
    signature = _signature(function)
    parameters = signature.parameters.values() if signature else ()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _without_defaults(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    signature = _signature(function)
    if signature is None:
        return args, kwargs
    parameters = signature.parameters

    def is_default(name: str, value: Any) -> bool:
        return (
            name in parameters and type(value) is type(parameters[name].default) and value == parameters[name].default
        )

    kept = {name: value for name, value in kwargs.items() if not is_default(name, value)}
    positional = _positional(function)
    while args and len(args) <= len(positional) and is_default(positional[len(args) - 1], args[-1]):
        args = args[:-1]
    return args, kept
