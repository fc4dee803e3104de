"""What a network computes without gradients or in another precision: `no_grad` and `autocast` in a forward."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from td_compiler.capture.places import Place, at_line, place_and_function
from td_compiler.capture.recording import Call, Image, Parameter, Result, values_in
from td_compiler.errors import ConversionError

__all__ = ["GradientMode", "refusal_of"]

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_SWITCHES = str(Path(torch.__file__).parent / "autograd" / "grad_mode.py")
_DECORATORS = str(Path(torch.__file__).parent / "utils" / "_contextlib.py")
_KINDS = ("cpu", "cuda")


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

    @staticmethod
    def refuse_autocast(place: Place) -> None:
        """Refuse a part of a network that runs in another precision of its own.

        Raises:
            ConversionError: naming the line.
        """
        if any(torch.is_autocast_enabled(kind) for kind in _KINDS):
            raise ConversionError(
                f"the forward switches autocast on for itself, at {at_line(place)}: the top-down network would compute"
                " there in full precision; put torch.autocast around the call of the network instead."
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
