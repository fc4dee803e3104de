"""Calling a class or factory that makes a source network, with arguments that a user typed."""

from __future__ import annotations

import difflib
import inspect
import re
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from td_compiler.errors import ConversionError

__all__ = ["Maker", "SourceError", "construct", "missing_arguments", "nearest", "place", "return_hint"]

Maker = Callable[..., Any]


class SourceError(ConversionError):
    """A source that gives no model.

    Attributes:
        usage: True where the command is at fault (an unknown name, a missing file, several candidates, a wrong
            argument), False where the source itself is (a file that does not run or holds no model, a factory that
            fails, a library that is not installed).
    """

    def __init__(self, message: str, *, usage: bool) -> None:
        super().__init__(message)
        self.usage = usage


def construct(
    maker: Maker,
    arguments: Mapping[str, Any],
    *,
    label: str,
    defaults: Mapping[str, Any] | None = None,
    file: Path | None = None,
    device: str | None = None,
) -> nn.Module:
    """Call a class or factory and check that it makes a network.

    Args:
        maker: the class or factory.
        arguments: the user's keyword arguments.
        label: what errors call it.
        defaults: keyword arguments that it gets unless the user says otherwise.
        file: the user's file that it comes from, so that an error can name the line.
        device: where to make the network; one that cannot be made there is made on the default device.

    Raises:
        SourceError: if an argument is unknown or missing, if the call fails, or if it returns no `nn.Module`.
    """
    if not _takes_any_keyword(maker):
        for name in arguments:
            _check_keyword(name, maker, label)
    missing = missing_arguments(maker, {*arguments, *(defaults or {})})
    if missing:
        give = " ".join(f"--arg {name}=VALUE" for name in missing)
        raise SourceError(f"{label} needs {', '.join(missing)}: give {give}.", usage=True)
    try:
        model = _make_on(device, maker, {**(defaults or {}), **arguments})
    except (Exception, SystemExit) as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown and unknown[1] in arguments:
            _check_keyword(unknown[1], maker, label)
        reason = f"{type(error).__name__}: {error} ({place(error, file)})"
        raise SourceError(f"{label} raised {reason}", usage=False) from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"{label} returned an object of type {type(model).__name__}, not an nn.Module.", usage=False)
    return model


def missing_arguments(maker: Maker, given: Iterable[str]) -> list[str]:
    """The parameters that a call with the given keyword arguments would lack."""
    return [
        parameter.name
        for parameter in _parameters(maker)
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in given
    ]


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`; did you mean ...?` with up to three of the names, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + each for each in close)}?" if close else ""


def place(error: BaseException, file: Path | None) -> str:
    """`model.py:12`: where an error was raised, or the innermost line of the user's file on the way there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and frame.filename == str(file)]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def return_hint(function: Maker) -> Any:
    """What a function is annotated to return; None where it does not say, or the annotation cannot be evaluated."""
    try:
        return typing.get_type_hints(function).get("return")
    except Exception:  # an annotation is any expression
        return None


def _make_on(device: str | None, maker: Maker, arguments: Mapping[str, Any]) -> Any:
    if device is not None:
        try:
            with torch.device(device):
                model = maker(**arguments)
        except Exception:
            model = None  # e.g. a rate per layer read off a tensor, which the meta device has no values for
        if isinstance(model, nn.Module):
            return model
    return maker(**arguments)


def _parameters(maker: Maker) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(maker).parameters.values())
    except (TypeError, ValueError):  # made in C, without a signature
        return []


def _takes_any_keyword(maker: Maker) -> bool:
    parameters = _parameters(maker)
    return not parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _check_keyword(name: str, maker: Maker, label: str) -> None:
    """Refuse a keyword that neither the maker takes nor the class that it passes its own `**kwargs` on to."""
    accepted = _keywords(maker)
    if not inspect.isclass(maker) and _takes_any_keyword(maker):
        made = return_hint(maker)
        accepted += _keywords(made) if inspect.isclass(made) else []
    if name not in accepted:
        accepted = list(dict.fromkeys(accepted))
        listed = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
        raise SourceError(f"{label} takes no argument {name!r}: {listed}{nearest(name, accepted)}", usage=True)


def _keywords(maker: Maker) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in _parameters(maker) if parameter.kind in kinds]
