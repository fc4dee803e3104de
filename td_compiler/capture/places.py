"""Lines of the user's code: where a call stands, where an error came from, who owns a tensor."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction

from td_compiler.graph.names import GENERATED

__all__ = ["Place", "at_line", "owner_of", "place_and_function", "place_of_error", "user_place"]

Place = tuple[str, int]
"""A line of the user's code: its file and number."""

_GENERATED = ("<frozen ", f"<{GENERATED}", "<training step ", "<eval_with_key>", "<__array_function__")
_OURS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", *_GENERATED)


def at_line(place: Place | None) -> str:
    """`model.py:48`, as messages give it."""
    return f"{place[0]}:{place[1]}" if place and place[0] else "an unknown line"


def user_place() -> Place:
    """The innermost line outside torch and this package: the user's own."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_OURS):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "", 0


def place_and_function(frame: Any) -> tuple[Place, Any]:
    """The user's line that a frame comes from; and the frame of an autograd function's forward around it, if any."""
    place: Place | None = None
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            place = place or (code.co_filename, frame.f_lineno)
            first = code.co_varnames[0] if code.co_argcount and code.co_name == "forward" else "self"
            if first != "self" and isinstance(frame.f_locals.get(first), BackwardCFunction):
                return place, frame
            if code.co_name == "forward" or code.co_name == "__call__":
                break
        frame = frame.f_back
    return place or ("", 0), None


def place_of_error(error: BaseException) -> Place | None:
    """The innermost line of the user's code in an exception's traceback."""
    place, trace = None, error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith(_OURS):
            place = filename, trace.tb_lineno
        trace = trace.tb_next
    return place


def owner_of(tensor: torch.Tensor) -> str:
    """The class of the module at work that has a tensor among its own parameters, "" if there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        own = module._parameters.values() if isinstance(module, nn.Module) else ()
        if any(each is tensor for each in own):
            return type(module).__name__
        frame = frame.f_back
    return ""
