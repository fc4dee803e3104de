"""The modules of a weightless network, that say when they are at work.

Every module gets a forward on its instance that tells the recorder at hand that it begins and ends, around its own one.
What users hook to a module runs outside of it, as in fact it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from td_compiler.capture.gradients import asks_autocast_on_meta
from td_compiler.capture.leaves import is_declared_leaf, is_leaf
from td_compiler.capture.places import user_place
from td_compiler.capture.recorder import Recorder, needs_data
from td_compiler.capture.recording import Call, Span, Stack, tensors_in

__all__ = ["Watch"]


class Watch:
    """Watches the modules of a network as long as it is open.

    Attributes:
        recorder: whom they tell.
        opaque: paths of modules that need values to run: taken to keep the shape of their first input.
    """

    def __init__(self, root: nn.Module) -> None:
        self.recorder: Recorder | None = None
        self.opaque: set[str] = set()
        self._watched: list[tuple[nn.Module, Any]] = []
        self._bare: dict[int, bool] = {}
        seen: set[int] = set()
        for path, module in root.named_modules(remove_duplicate=False):
            if path and id(module) not in seen:
                seen.add(id(module))
                self._watched.append((module, vars(module).get("forward")))
                module.__dict__["forward"] = self._forward(path, module)

    def close(self) -> None:
        """Give every module its own forward back."""
        for module, own in self._watched:
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own

    def _forward(self, path: str, module: nn.Module) -> Callable[..., Any]:
        own = module.forward
        whole = is_leaf(module) or _asks_mode(module)
        bare = self._is_bare(module)
        spares_values = is_declared_leaf(module)
        kind = type(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            recorder = self.recorder
            if recorder is None or recorder.busy or recorder.inside:
                return own(*args, **kwargs)
            if whole or path in self.opaque:
                return self._layer(recorder, path, module, own, args, kwargs, spares_values=spares_values)
            recording, before = recorder.recording, recorder.stack
            span = None
            if bare:
                given = recorder.refer(args), recorder.refer(kwargs)
                span = Span(path, module, *given, len(recording.calls), before, user_place())
            recorder.stack = (*before, (path, kind))
            try:
                output = own(*args, **kwargs)
            except Exception:
                _note_error(recorder, recorder.stack, (args, kwargs))
                raise
            finally:
                recorder.stack = before
            if span is not None and len(recording.calls) > span.start:
                span.stop, span.output = len(recording.calls), recorder.refer(output)
                recording.spans.append(span)
            return output

        return forward

    def _layer(
        self,
        recorder: Recorder,
        path: str,
        module: nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        spares_values: bool,
    ) -> Any:
        """Run a module that is one call."""
        given, named, place, notes = recorder.refer(args), recorder.refer(kwargs), user_place(), {}
        recorder.inside = True
        try:
            output = own(*args, **kwargs)
        except Exception as error:
            first = next(tensors_in((args, kwargs)), None)
            needs_device = needs_data(error) or asks_autocast_on_meta(error)
            if first is None or not (path in self.opaque or (spares_values and needs_device)):
                _note_error(recorder, (*recorder.stack, (path, type(module))), (args, kwargs))
                raise
            output, notes = torch.empty_like(first), {"opaque": True}
        finally:
            recorder.inside = False
        call = Call("call_module", path, given, named, output, recorder.stack, place, module, notes)
        return recorder.record_layer(call, (args, kwargs))

    def _is_bare(self, module: nn.Module) -> bool:
        """Whether a module has no parameters, its children's included."""
        key = id(module)
        if key not in self._bare:
            own = any(parameter is not None for parameter in module._parameters.values())
            children = (child for child in module._modules.values() if child is not None)
            self._bare[key] = not own and all(self._is_bare(child) for child in children)
        return self._bare[key]


def _note_error(recorder: Recorder, stack: Stack, given: Any) -> None:
    """Keep the innermost module that an exception came out of."""
    if not recorder.recording.error_stack:
        recorder.recording.error_stack = stack
        recorder.recording.error_inputs = [tuple(tensor.shape) for tensor in tensors_in(given)]


def _asks_mode(module: nn.Module) -> bool:
    """Whether a module without parameters and children does something in training alone: it stays whole.

    What it does then cannot be seen in evaluation, where it hands on what it was given. A call of a dropout can.
    """
    if module._modules or module._parameters:
        return False
    code = getattr(type(module).forward, "__code__", None)
    names = code.co_names if code is not None else ()
    return "training" in names and not any("dropout" in name for name in names)
