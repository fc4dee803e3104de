"""Options that several commands share, written once: as the parameters of one function."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["with_shared_options"]

R = TypeVar("R")


def with_shared_options(command: Callable[..., R], shared: Callable[..., Any]) -> Callable[..., R]:
    """A command line of the shared options and the command's own.

    Args:
        command: its first parameter is what `shared` returns, the others are its own options, in typer's terms.
        shared: its parameters are the shared options.

    Returns:
        the command with the parameters of `shared` in place of its first one.
    """

    @functools.wraps(command)
    def combined(**given: Any) -> R:
        common = {name: given.pop(name) for name in inspect.signature(shared).parameters}
        return command(shared(**common), **given)

    parameters = [*_typed_parameters(shared), *_typed_parameters(command)[1:]]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    combined.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    combined.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del combined.__wrapped__  # else typer would ask it for the types
    return combined


def _typed_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(function, include_extras=True)
    return [each.replace(annotation=hints[name]) for name, each in inspect.signature(function).parameters.items()]
