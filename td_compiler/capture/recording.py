"""What one run of a network did: its calls, in order, and the values that they made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from td_compiler.capture.places import Place

__all__ = [
    *("Call", "Constant", "Image", "Of", "Parameter", "Recording", "Result", "Span", "Stack", "Value", "tensors_in"),
    *("tensor_of", "values_in"),
]

Stack = tuple[tuple[str, type], ...]
"""The modules that a call runs in, outermost first: paths and classes."""


@dataclass(frozen=True, eq=False)
class Image:
    """The batch of images."""


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter or buffer of the network."""

    path: str


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the network has or makes, no parameter or buffer; its values do not depend on any image."""

    tensor: torch.Tensor
    name: str


@dataclass(frozen=True)
class Result:
    """What a call returned: all of it, or the part at the given indices."""

    call: Call
    at: tuple[int | str, ...] = ()


Value = Image | Parameter | Constant | Result


@dataclass(eq=False, repr=False)  # calls read calls: written out in full they would have no end
class Call:
    """One operation.

    Attributes:
        op, target: as in an fx graph.
        args, kwargs: what it was called with; tensors are :data:`Value`, sizes may be `Dim`.
        output: what it returned, on the meta device.
        stack: the modules that it ran in.
        place: the line of the user's code.
        module: the layer that a `call_module` calls.
        notes: `opaque` and `factor`, for the facts about its node; `random`, `autograd`, `autocast` and `no_grad` (the
            line that switched gradients off), for the capture.
    """

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    stack: Stack
    place: Place
    module: nn.Module | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Span:
    """The calls that ran in one call of a module without parameters."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    start: int
    stack: Stack
    place: Place
    stop: int = -1
    output: Any = None


class Recording:
    """What a run did.

    Attributes:
        calls: in order.
        outputs: the tensors that the network returned, each with its name in what was returned.
        spans: of the modules without parameters, in the order in which they ended.
        error, error_stack, error_place: what ended the run early, in which module, on which line.
        error_inputs: the shapes of what that module was given.
        writes: parameters and buffers that the run changed in place: path -> line.
        refusals: what the run did that no graph can say, as sentences.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.outputs: list[tuple[str, Value]] = []
        self.spans: list[Span] = []
        self.error: BaseException | None = None
        self.error_stack: Stack = ()
        self.error_place: Place | None = None
        self.error_inputs: list[tuple[int, ...]] = []
        self.writes: dict[str, Place] = {}
        self.refusals: list[str] = []


@dataclass(frozen=True, eq=False)
class Of:
    """The device or dtype of a value."""

    value: Value
    attribute: str


def tensor_of(value: Result) -> Any:
    """What a call returned, at the value's place in it."""
    made = value.call.output
    for key in value.at:
        made = made[key]
    return made


def values_in(item: Any) -> Iterator[Value]:
    """All values in the arguments of a call."""
    if isinstance(item, (Image, Parameter, Constant, Result)):
        yield item
    elif isinstance(item, Of):
        yield item.value
    elif isinstance(item, (tuple, list)):
        for each in item:
            yield from values_in(each)
    elif isinstance(item, dict):
        for each in item.values():
            yield from values_in(each)


def tensors_in(item: Any) -> Iterator[torch.Tensor]:
    """All tensors in arguments, or in what a function returned."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (tuple, list, dict)):
        for each in item.values() if isinstance(item, dict) else item:
            if isinstance(each, torch.Tensor):
                yield each
            elif isinstance(each, (tuple, list, dict)):
                yield from tensors_in(each)
