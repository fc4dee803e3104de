"""What a network computes without gradients or in another precision: `no_grad` and `autocast` in a forward."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from td_compiler.capture.places import Place, at_line, place_and_function
from td_compiler.capture.recording import Call, Image, Parameter, Result, Stack, values_in

__all__ = ["GradientMode", "asks_autocast_on_meta", "autocast_depth", "refusal_of", "refusal_of_autocast"]

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_SWITCHES = str(Path(torch.__file__).parent / "autograd" / "grad_mode.py")
_AUTOCAST = str(Path(torch.__file__).parent / "amp" / "autocast_mode.py")
_DECORATORS = str(Path(torch.__file__).parent / "utils" / "_contextlib.py")


class GradientMode:
    """Whether gradients are on for the user's code: it runs without any, so torch itself does not say.

    Args:
        training: whether the network runs in training mode: only there they are what `set_grad_enabled` asks for.
    """

    def __init__(self, training: bool) -> None:
        self.place: Place = ("", 0)  # where they were switched off
        self._training = training
        self._on = True
        self._before: dict[int, bool] = {}  # a context -> whether they were on before it

    @property
    def is_off(self) -> bool:
        return not self._on or torch.is_inference_mode_enabled()

    def switch(self, value: bool, frame: Any) -> None:
        """Note that gradients are switched, by a frame of torch's that the user's code may have called."""
        if frame.f_code.co_filename != _SWITCHES:  # by torch's own function, for good
            self._on = value
            return
        while frame.f_back is not None and frame.f_back.f_code.co_filename == _SWITCHES:
            frame = frame.f_back
        user = frame.f_back
        while user is not None and user.f_code.co_filename == _DECORATORS:
            user = user.f_back
        if user is None or user.f_code.co_filename.startswith(_TORCH):  # a checkpoint's
            return
        if place_and_function(user)[1] is not None:  # an autograd function's
            return
        context = id(frame.f_locals.get("self"))
        if frame.f_code.co_name == "__exit__":
            self._on = self._before.pop(context, True)
        else:
            self._before.setdefault(context, self._on)
            asks = isinstance(frame.f_locals.get("self"), torch.set_grad_enabled)
            self._on = self._on if asks and not self._training else value
            self.place = user.f_code.co_filename, user.f_lineno


def autocast_depth() -> int:
    """In how many `torch.autocast` contexts the code at hand runs, switched on or off."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def asks_autocast_on_meta(error: BaseException) -> bool:
    """Whether an exception comes of `torch.autocast(x.device.type)`, which the meta device does not know."""
    trace, innermost = error.__traceback__, ""
    while trace is not None:
        innermost, trace = trace.tb_frame.f_code.co_filename, trace.tb_next
    return innermost == _AUTOCAST


def refusal_of_autocast(stack: Stack, place: Place | None) -> str:
    """Why a part of a network that runs under a `torch.autocast` of its own, switched on or off, does not convert."""
    name = repr(stack[-1][0]) if stack else "the forward"
    return (
        f"{name} computes under a torch.autocast of its own, at {at_line(place)}, which the top-down network would not"
        " have: leave it out and put torch.autocast around the call of the network, or move it into a submodule that"
        " keeps the shape of its input, and declare its class a leaf with td_compiler.leaf(Class)."
    )


def refusal_of(value: Result) -> str:
    """Why a value that is computed without gradients cannot be cut off from them here; "" if it can.

    Layers that are run so are not trained in the source. In the top-down network others stand in front of them.
    """
    stack, reached = [value.call], set()
    while stack:
        call = stack.pop()
        if call in reached or not call.notes.get("no_grad"):
            continue
        reached.add(call)
        read = list(values_in((call.args, call.kwargs)))
        maps = any(isinstance(each, (Image, Result)) for each in read)
        if maps and (_has_parameters(call) or any(isinstance(each, Parameter) for each in read)):
            name = repr(call.target) if call.module is not None else f"what has parameters at {at_line(call.place)}"
            return (
                f"{name} runs without gradients, by {at_line(call.notes['no_grad'])}: in the top-down network other"
                " layers come before it, which would not be trained either; freeze it by `requires_grad_(False)`."
            )
        stack.extend(each.call for each in read if isinstance(each, Result))
    return ""


def _has_parameters(call: Call) -> bool:
    return call.module is not None and any(True for _ in call.module.parameters())
