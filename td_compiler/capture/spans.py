"""Modules that stay whole: one call in place of what runs inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from td_compiler.capture.build import key_of
from td_compiler.capture.meta import ShapesOnly
from td_compiler.capture.numbers import Dim, Made, Size
from td_compiler.capture.places import at_line
from td_compiler.capture.recording import Call, Of, Recording, Result, Span, Value, tensor_of
from td_compiler.errors import ConversionError
from td_compiler.graph.operators import FUNCTIONS, METHODS, Kind, layer_row
from td_compiler.layers.steps import FunctionStep

__all__ = ["differing", "fold_functions", "fold_modules", "kept_whole", "shrinking"]

_PROBE = 240  # divisible by every usual stride


def fold_modules(recordings: list[Recording], chosen: Callable[[int, Span], dict[str, Any] | None]) -> None:
    """Fold calls of modules without parameters into one, in all recordings alike.

    Args:
        recordings: runs of one network.
        chosen: (place in the first recording's spans, span) -> the notes of the call that takes its place, None where
            the module is to be looked into.
    """
    first = recordings[0]
    named = zip(_names(first), first.spans, strict=True)
    picked = {name: notes for i, (name, s) in enumerate(named) if (notes := chosen(i, s)) is not None}
    if not picked:
        return
    for recording in recordings:
        named = zip(_names(recording), recording.spans, strict=True)
        spans = [(s, picked[name]) for name, s in named if name in picked]
        outer = [(s, notes) for s, notes in spans if not any(_inside(s, other) for other, _ in spans)]
        for span, notes in sorted(outer, key=lambda pair: pair[0].start, reverse=True):
            _fold(recording, span, notes)


def _names(recording: Recording) -> list[tuple[str, int]]:
    """For every span its module's path, and how many times that ran before."""
    counts: Counter[str] = Counter()
    names = []
    for span in recording.spans:
        names.append((span.path, counts[span.path]))
        counts[span.path] += 1
    return names


def _inside(span: Span, other: Span) -> bool:
    return other is not span and other.start <= span.start and span.stop <= other.stop and span.path != other.path


def _fold(recording: Recording, span: Span, notes: dict[str, Any]) -> None:
    results = [value for value in _flat(span.output) if isinstance(value, Result)]
    inside = recording.calls[span.start : span.stop]
    made = [value for value in results if value.call in inside]
    if len(made) != 1 or not isinstance(span.output, Result):
        return  # several outputs, or one that it was given
    call = Call(
        "call_module", span.path, span.args, span.kwargs, tensor_of(made[0]), span.stack, span.place, span.module, notes
    )
    _put(recording, span.start, span.stop, call)
    _replace(recording, made[0], Result(call), span.start)


def _put(recording: Recording, start: int, stop: int, call: Call) -> None:
    """Put one call in the place of several."""
    recording.calls[start:stop] = [call]
    gone = stop - start - 1
    recording.spans = [s for s in recording.spans if not (start <= s.start and s.stop <= stop) or s.path == call.target]
    for span in recording.spans:
        if span.start >= stop:
            span.start -= gone
        if span.stop >= stop:
            span.stop -= gone


def _flat(item: Any) -> list[Value]:
    if isinstance(item, (tuple, list)):
        return [value for each in item for value in _flat(each)]
    if isinstance(item, dict):
        return [value for each in item.values() for value in _flat(each)]
    return [item]


def _replace(recording: Recording, old: Value, new: Value, start: int) -> None:
    """Let everything from a place on read another value."""

    def change(item: Any) -> Any:
        if isinstance(item, Result):
            return new if item == old else item
        if type(item) in (tuple, list):
            return type(item)(change(each) for each in item)
        if isinstance(item, dict):
            return {key: change(each) for key, each in item.items()}
        if isinstance(item, slice):
            return slice(change(item.start), change(item.stop), change(item.step))
        if isinstance(item, Of):
            return Of(change(item.value), item.attribute)
        return Dim(item, in_term(item.term)) if isinstance(item, Dim) else item

    def in_term(term: Any) -> Any:
        if isinstance(term, Size):
            return Size(change(term.value), term.axis)
        return Made(term.function, tuple(map(in_term, term.operands))) if isinstance(term, Made) else term

    for call in recording.calls[start + 1 :]:
        call.args, call.kwargs = change(call.args), change(call.kwargs)
    for span in recording.spans:
        span.args, span.kwargs, span.output = change(span.args), change(span.kwargs), change(span.output)
    recording.outputs = [(name, change(value)) for name, value in recording.outputs]


def fold_functions(recording: Recording) -> dict[str, nn.Module]:
    """Fold what runs in the forward of an autograd function into one call of it: its backward is its own.

    Returns the modules, by path, that call them.

    Raises:
        ConversionError: if one runs layers that it is given: its backward is made for these, whose widths change.
    """
    made: dict[str, nn.Module] = {}
    at = 0
    while at < len(recording.calls):
        tag = recording.calls[at].notes.get("autograd")
        stop = at
        while tag is not None and stop < len(recording.calls):
            own = recording.calls[stop].notes.get("autograd")
            if own is None or own[0] != tag[0]:
                break
            stop += 1
        if tag is None or not _own_function(recording.calls[at]):
            at += 1
            continue
        last = recording.calls[stop - 1]
        layers = [a for a in tag[2] if isinstance(a, nn.Module) and any(True for _ in a.parameters())]
        if layers:
            raise ConversionError(
                f"the autograd function {tag[1].__name__} at {at_line(last.place)} runs layers that it is given"
                f" ({', '.join(type(layer).__name__ for layer in layers)}), and its backward is made for these: call"
                " the layers in the module's forward, and let autograd find the gradients."
            )
        home = f"{last.stack[-1][0]}." if last.stack else ""
        path = f"{home}{tag[1].__name__.lower()}"
        path += str(sum(other.startswith(path) for other in made) or "")
        made[path] = FunctionStep(tag[1])
        call = Call("call_module", path, tag[2], {}, last.output, last.stack, last.place, made[path])
        _put(recording, at, stop, call)
        _replace(recording, Result(last), Result(call), at)
        at += 1
    return made


def shrinking(recording: Recording) -> dict[int, tuple[int, int]]:
    """The modules that are poolings of the user's own: span -> the factor by which they make any map smaller.

    One whose pooling is torch's is none: it is read operation by operation.
    """
    found: dict[int, tuple[int, int]] = {}
    for i, span in enumerate(recording.spans):
        if len(span.args) != 1 or span.kwargs or not isinstance(span.output, Result):
            continue
        inside = recording.calls[span.start : span.stop]
        before, after = _tensor(span.args[0]), _tensor(span.output)
        if before is None or after is None or before.dim() != 4 or after.dim() != 4:
            continue
        if after.shape[2] >= before.shape[2] or after.shape[3] >= before.shape[3] or any(map(_pools, inside)):
            continue
        factor = _factor_of(span.module, before)
        if factor is not None:
            found[i] = factor
    return found


def _tensor(value: Any) -> torch.Tensor | None:
    if not isinstance(value, Result):
        return None
    made = tensor_of(value)
    return made if isinstance(made, torch.Tensor) else None


def _pools(call: Call) -> bool:
    """Whether the operator table knows how a call makes its map smaller, or it is the norm or activation of a unit."""
    if call.op == "call_module":
        row = layer_row(call.module)
    else:
        row = FUNCTIONS.get(call.target) if call.op == "call_function" else METHODS.get(str(call.target))
    return row is not None and row.kind in {Kind.POOL, Kind.GLOBAL_POOL, Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT}


def _factor_of(module: nn.Module, like: torch.Tensor) -> tuple[int, int] | None:
    try:  # on maps so large that borders do not count
        with torch.no_grad(), ShapesOnly():
            factor = _factor(module, like, _PROBE)
            same = factor == _factor(module, like, 2 * _PROBE)
    except Exception:  # whatever it is, looking into the module will say it better
        return None
    return (factor[0], factor[1]) if same and len(factor) == 2 and min(factor) > 0 and factor != (1, 1) else None


def _factor(module: nn.Module, like: torch.Tensor, side: int) -> tuple[int, ...]:
    """The factors by which a module makes a square map smaller, one for every axis after the channels."""
    made = module(like.new_empty(*like.shape[:2], side, side))
    return tuple(round(side / extent) for extent in made.shape[2:])


def differing(base: Recording, other: Recording) -> set[int]:
    """The innermost modules that run other operations in another mode: their places in the first run's spans."""
    twins = dict(zip(_names(other), other.spans, strict=True))
    found: list[int] = []
    for i, (name, span) in enumerate(zip(_names(base), base.spans, strict=True)):
        twin = twins.get(name)
        if twin is not None and _steps(base, span) != _steps(other, twin):
            found.append(i)
    spans = base.spans
    return {i for i in found if not any(_inside(spans[j], spans[i]) for j in found)}


def _steps(recording: Recording, span: Span) -> list[Any]:
    return [key_of(call) for call in recording.calls[span.start : span.stop]]


def kept_whole(recording: Recording) -> set[int]:
    """The innermost modules in which an autograd function of the user's own runs, or a `torch.autocast`."""
    found = [
        i
        for i, span in enumerate(recording.spans)
        if any(_own_function(call) or "autocast" in call.notes for call in recording.calls[span.start : span.stop])
    ]
    spans = recording.spans
    return {i for i in found if not any(_inside(spans[j], spans[i]) for j in found)}


def _own_function(call: Call) -> bool:
    tag = call.notes.get("autograd")
    return tag is not None and not tag[1].__module__.startswith("torch.")
