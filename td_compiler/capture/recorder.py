"""Running a network once on the meta device and noting what it computes (DESIGN 1).

The user's code runs as it is. A `TorchFunctionMode` sees every call of torch; the modules of the weightless copy say
which of them is at work, and a layer's inside is one call (:mod:`td_compiler.capture.watching`). Nothing outside the
copy is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from td_compiler.capture.gradients import GradientMode, autocast_depth, refusal_of
from td_compiler.capture.meta import META, is_meta, on_meta
from td_compiler.capture.numbers import Dim, Size
from td_compiler.capture.places import at_line, owner_of, place_and_function, place_of_error, user_place
from td_compiler.capture.recording import (
    Call,
    Constant,
    Image,
    Of,
    Recording,
    Result,
    Stack,
    Value,
    tensors_in,
)
from td_compiler.capture.shapes import returned
from td_compiler.capture.spelling import in_place, is_random, spelled
from td_compiler.capture.writing import Writes
from td_compiler.errors import ConversionError

__all__ = ["NeedsScripts", "Recorder", "needs_data"]


class NeedsScripts(Exception):
    """A function compiled by TorchScript ran, whose operators only another run shows."""


def needs_data(error: BaseException) -> bool:
    """Whether an exception says that the values of a tensor were asked for, which the meta device has not."""
    text = str(error)
    return any(words in text for words in ("meta tensor", "meta device", "data-dependent")) and isinstance(
        error, (RuntimeError, NotImplementedError, TypeError, ValueError)
    )


class Recorder(TorchFunctionMode):
    """Records one run; `recording` is what it gives.

    Args:
        root: the weightless network, in the mode to look at.
        tensors: what its parameters and buffers are, and those of the network that it was copied from, by `id`.
        images: (N, C, H, W), on the meta device.
        scripts: whether functions compiled by TorchScript are looked into, at some cost.
    """

    def __init__(
        self, root: nn.Module, tensors: dict[int, Value], images: torch.Tensor, *, scripts: bool = False
    ) -> None:
        super().__init__()
        self.root = root
        self.recording = Recording()
        self.values: dict[int, Value] = {**tensors, id(images): Image()}
        self.alive: list[Any] = [images]  # so that no `id` is used twice
        self.stack: Stack = ()
        self.inside = False  # a layer, whose own calls are not recorded
        self.busy = False  # while torch computes what is recorded
        self.writes = Writes(self)
        self.gradients = GradientMode(root.training)
        self._autocast_depth = autocast_depth()  # the caller's
        self._images = images
        self._latest: torch.Tensor = images
        self._scripts = scripts
        self._needs_scripts = False
        self._mirrors: dict[int, torch.Tensor] = {}  # constants on the meta device
        self._function_args: dict[int, tuple[Any, ...]] = {}  # frame of an autograd function -> what it was given
        self._names: dict[int, str] | None = None

    def run(self) -> Recording:
        """Run the network; an exception of its own ends the recording and stands in it."""
        recording = self.recording
        try:
            with torch.no_grad(), self:
                if self._scripts:
                    with _Kernels(self):
                        output = self.root(self._images)
                else:
                    output = self.root(self._images)
            recording.outputs = list(self.named_tensors(output))
        except ConversionError:
            raise
        except (Exception, SystemExit) as error:
            if self._needs_scripts or isinstance(error, NeedsScripts):
                raise NeedsScripts from None
            recording.error = error
            recording.error_place = place_of_error(error)
        finally:
            self._forget()
        return recording

    def _forget(self) -> None:
        """Let go of what only the run needed: a recorder and its writes know each other, and would stay for long."""
        for kept in (self.values, self._mirrors, self._function_args):
            kept.clear()
        self.alive.clear()
        self.writes = Writes(self)

    def record_layer(self, call: Call, given: Any) -> Any:
        """Note the call of a layer; returns its output as what reads it is to know it."""
        self.append(call)
        first = next(tensors_in(given), None)
        if first is not None and call.output is first:
            if getattr(call.module, "inplace", False):
                self.writes.mark(first, call.place)
            else:
                call.output = self._alias(first)
        self.assign(call.output, call)
        return call.output

    def append(self, call: Call) -> None:
        """Put a call behind the others, with what surrounds it."""
        if self.gradients.is_off:
            call.notes["no_grad"] = self.gradients.place
        if autocast_depth() > self._autocast_depth:
            call.notes["autocast"] = True
        self.recording.calls.append(call)

    def _alias(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same tensor as another object: so that what a function hands on can be told from what it was given."""
        busy, self.busy = self.busy, True
        try:
            return tensor.view(tensor.shape)
        finally:
            self.busy = busy

    # ---- functions

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.busy or self.inside:
            return self._compute(function, args, kwargs)
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = str(getattr(function.__self__, "__name__", ""))  # type: ignore[attr-defined]
            if name not in _TENSOR_ATTRIBUTES:
                return self._ask_attribute(function, name, args[0])
        elif name in _SIZES:
            sizes = self._ask_size(function, name, args, kwargs)
            if sizes is not None:
                return sizes
        elif name == "_set_grad_enabled":
            self.gradients.switch(bool(args[0]), sys._getframe(1))
            return None
        elif name == "__setitem__":
            return self.writes.set_item(*args)
        elif name == "to" or name in _DEVICES:
            moved, args, kwargs = self._stay(name, args, kwargs)
            if moved:
                return args[0]
        return self.record(function, name, args, kwargs)

    def _ask_attribute(self, function: Callable[..., Any], name: str, tensor: torch.Tensor) -> Any:
        if name == "shape":
            return self._ask_size(function, "size", (tensor,), {}) or tensor.shape
        self.busy = True
        try:
            return function(tensor)
        finally:
            self.busy = False

    def _ask_size(self, function: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        """A size of a map, as numbers that know whose size they are; None for parameters and constants."""
        tensor = args[0] if args else kwargs.get("input")
        value = self.values.get(id(tensor))
        if not isinstance(value, (Image, Result)) or len(args) > 2:
            return None
        shape = tuple(tensor.shape)
        if self.writes.renew(tensor):
            value = self.values[id(tensor)]
        dims = [Dim(n, Size(value, axis)) for axis, n in enumerate(shape)]
        if name == "__len__":
            return dims[0]
        if name == "numel":
            whole: Any = dims[0]
            for dim in dims[1:]:
                whole = whole * dim
            return whole
        axis = args[1] if len(args) == 2 else kwargs.get("dim")
        return torch.Size(dims) if axis is None else dims[axis]

    def _stay(self, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[bool, Any, dict[str, Any]]:
        """Moving to a device is not the network's business: what is left of such a call; whether nothing is."""
        tensor, *rest = args
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
            rest = [torch.device("cpu") if _is_device(a) else a for a in rest]
            kwargs = {k: v for k, v in kwargs.items() if k != "device"}
            return name in _DEVICES or not (rest or kwargs), (tensor, *rest), kwargs
        rest = [a for a in rest if not _is_device(a)]
        kwargs = {k: v for k, v in kwargs.items() if k not in {"device", "non_blocking"}}
        if name in _DEVICES or not (rest or kwargs.keys() - {"copy", "memory_format"}):
            return True, (tensor,), {}
        return False, (tensor, *rest), kwargs

    def record(self, function: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute a call of torch and note it."""
        if name in _PREDICATES:
            return self._compute(function, args, kwargs)
        if "prims::" in str(getattr(function, "__qualname__", "")) and not self._scripts:
            self._needs_scripts = True
            raise NeedsScripts
        given, named = self.refer(args), {key: self.refer(value) for key, value in kwargs.items()}
        place, frame = place_and_function(sys._getframe(1))
        random, changed = is_random(name), in_place(function, name, kwargs)
        output = self._draw(function, args, kwargs, changed) if random else self._compute(function, args, kwargs)
        if next(tensors_in(output), None) is None:
            return output
        before = next(tensors_in(args), None)
        if changed and before is not None:
            self.writes.mark(before, place)
        elif before is not None and output is before:
            if name in _SAME:
                return output
            output = self._alias(output)
        op, target, given, named = spelled(function, name, given, named, keep=random)
        call = Call(op, target, given, named, output, self.stack, place)
        if random:
            call.notes["random"] = True
        if frame is not None:
            call.notes["autograd"] = self._function(frame)
        self.append(call)
        self.assign(output, call)
        if name == "__getitem__" and isinstance(output, torch.Tensor):
            self.writes.views[id(output)] = (args[0], args[1])
        return output

    def _draw(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], changed: bool) -> Any:
        """Random numbers have no values here: they are not drawn, and no one's generator moves."""
        if changed and (first := next(tensors_in(args), None)) is not None and not first.is_meta:
            return first
        if any(tensor.is_meta for tensor in tensors_in((args, kwargs))):
            return self._compute(function, args, kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key != "generator"}
        busy, self.busy = self.busy, True
        try:
            if next(tensors_in((args, kwargs)), None) is None:
                return function(*args, **{**kwargs, "device": META})
            moved = [on_meta(tensor) if isinstance(tensor, torch.Tensor) else tensor for tensor in args]
            return function(*moved, **kwargs)
        finally:
            self.busy = busy

    def _compute(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a function: on the meta device where a traced tensor is among its arguments, else for real."""
        traced = real = False
        for given in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(given, torch.Tensor):
                traced, real = traced or given.is_meta, real or not given.is_meta
            elif isinstance(given, (tuple, list)):
                for tensor in tensors_in(given):
                    traced, real = traced or tensor.is_meta, real or not tensor.is_meta
        if traced and real:
            args, kwargs = _map(args, self._mirror), {key: _map(value, self._mirror) for key, value in kwargs.items()}
        elif not traced and self._names_meta(args, kwargs):
            args, kwargs = _map(args, _on_cpu), {key: _map(value, _on_cpu) for key, value in kwargs.items()}
        elif not traced and not real and "device" not in kwargs and _is_factory(function):
            kwargs = {**kwargs, "device": "cpu"}
        busy, self.busy = self.busy, True
        try:
            made = returned(function, args, kwargs) if traced and not torch.is_grad_enabled() else None
            return function(*args, **kwargs) if made is None else made
        finally:
            self.busy = busy

    def _names_meta(self, args: Any, kwargs: dict[str, Any]) -> bool:
        return any(is_meta(a) for a in (*args, *kwargs.values()))

    def _mirror(self, item: Any) -> Any:
        """A constant on the meta device."""
        if not isinstance(item, torch.Tensor) or item.is_meta or item.dim() == 0:
            return item
        if id(item) not in self._mirrors:
            self._mirrors[id(item)] = on_meta(item.detach())
            self.alive.append(item)
        return self._mirrors[id(item)]

    # ---- tensors and what they are

    def named_tensors(self, item: Any, name: str = "") -> Iterator[tuple[str, Value]]:
        """The tensors in what a network returned, by the names of fields, keys and places."""
        if isinstance(item, torch.Tensor):
            yield name, self._value(item)
        elif isinstance(item, dict):
            for key, value in item.items():
                yield from self.named_tensors(value, f"{name}.{key}" if name else str(key))
        elif isinstance(item, (tuple, list)):
            fields = getattr(item, "_fields", range(len(item)))
            for key, value in zip(fields, item, strict=True):
                yield from self.named_tensors(value, f"{name}.{key}" if name else str(key))
        elif hasattr(item, "__dict__") and not isinstance(item, (type, nn.Module)):
            yield from self.named_tensors(vars(item), name)

    def refer(self, item: Any) -> Any:
        """The same with every tensor as a :data:`Value`; objects that torch does not know stay as they are."""
        kind = type(item)
        if kind is int or kind is float or kind is bool or item is None or kind is str or kind is Dim:
            return item
        if isinstance(item, torch.Tensor):
            return self._value(item)
        if kind is tuple or kind is list or kind is torch.Size:
            made = [self.refer(each) for each in item]
            return made if kind is list else tuple(made)
        if isinstance(item, dict):
            return {key: self.refer(value) for key, value in item.items()}
        if kind is slice:
            return slice(self.refer(item.start), self.refer(item.stop), self.refer(item.step))
        if is_meta(item):
            return Of(self._value(self._latest), "device")
        if hasattr(item, "item") and type(item).__module__ == "numpy":
            return item.item() if not getattr(item, "shape", ()) else item.tolist()
        return item

    def _value(self, tensor: torch.Tensor) -> Value:
        self.writes.renew(tensor)
        value = self.values.get(id(tensor))
        if value is None:
            value = self._unknown(tensor)
            self.values[id(tensor)] = value
            self.alive.append(tensor)
        if isinstance(value, Result) and value.call.notes.get("no_grad") and not self.gradients.is_off:
            return self._cut_off(tensor, value)
        return value

    def _cut_off(self, tensor: torch.Tensor, value: Result) -> Value:
        """What was computed without gradients, as what is computed with them reads it."""
        if reason := refusal_of(value):
            raise ConversionError(reason)
        place = user_place()
        call = Call("call_method", "detach", (value,), {}, self._alias(tensor), self.stack, place)
        self.recording.calls.append(call)
        self.values[id(tensor)] = Result(call)
        return self.values[id(tensor)]

    def _unknown(self, tensor: torch.Tensor) -> Value:
        if isinstance(tensor, nn.Parameter):
            owner = owner_of(tensor)
            raise ConversionError(
                f"{owner or 'a module with parameters'} is made in forward, at {at_line(user_place())}: its parameters"
                " would be new ones at every call; make it in __init__ and keep it as an attribute."
            )
        if tensor.is_meta:
            raise ConversionError(self._of_unknown_origin(tensor)) if self._scripts else NeedsScripts
        return Constant(tensor.detach(), self._name_of(tensor))

    def _of_unknown_origin(self, tensor: torch.Tensor) -> str:
        where = at_line(user_place())
        if kept := self._kept_as(tensor):
            return (
                f"{kept!r}, read at {where}, was computed in an earlier call of the network and kept: nothing says from"
                " what; compute it in every call, or in __init__ as a buffer."
            )
        return f"the network computes a tensor outside torch's Python functions, at {where}: nothing says from what."

    def _name_of(self, tensor: torch.Tensor) -> str:
        """Where a module keeps a tensor that is no buffer, as a path; where none does, a name in the module at hand."""
        home = self.stack[-1][0] if self.stack else ""
        return self._kept_as(tensor) or (f"{home}.constant" if home else "constant")

    def _kept_as(self, tensor: torch.Tensor) -> str:
        """Where a module keeps a tensor as a plain attribute, as a path; "" where none does."""
        if self._names is None:
            self._names = {}
            for path, module in self.root.named_modules():
                for name, value in vars(module).items():
                    for inner, found in _found(name, value):
                        self._names.setdefault(id(found), f"{path}.{inner}" if path else inner)
        return self._names.get(id(tensor), "")

    def assign(self, output: Any, call: Call, at: tuple[int | str, ...] = ()) -> None:
        """Note that the tensors of an output are what a call returned."""
        if isinstance(output, torch.Tensor):
            self.values[id(output)] = Result(call, at)
            self.alive.append(output)
            if output.is_meta:
                self._latest = output
            if call.op != "call_module":
                self.writes.watch(output)
        elif isinstance(output, dict):
            for key, value in output.items():
                self.assign(value, call, (*at, key))
        elif isinstance(output, (tuple, list)):
            for i, value in enumerate(output):
                self.assign(value, call, (*at, i))

    def _function(self, frame: Any) -> tuple[Any, ...]:
        """(frame, class, arguments) of the forward of an autograd function; its arguments as they came in."""
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        kind = type(frame.f_locals[names[0]])._forward_cls
        if id(frame) not in self._function_args:
            self.alive.append(frame)
            self._function_args[id(frame)] = tuple(self.refer(frame.f_locals[name]) for name in names[1:])
        return id(frame), kind, self._function_args[id(frame)]


class _Kernels(TorchDispatchMode):
    """Records what code outside Python (TorchScript) computes, operator by operator."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = self.recorder
        kwargs = kwargs or {}
        if recorder.busy or recorder.inside:
            return function(*args, **kwargs)
        name = function.overloadpacket.__name__
        plain = getattr(torch, name, None) or getattr(torch.nn.functional, name, None)
        recorder.busy = True
        try:
            output = function(*args, **kwargs)
        finally:
            recorder.busy = False
        if plain is None:
            raise ConversionError(f"TorchScript's operator {name} has no form in torch: write it in plain Python.")
        given, named = recorder.refer(args), {key: recorder.refer(value) for key, value in kwargs.items()}
        op, target, given, named = spelled(plain, name, given, named)
        call = Call(op, target, given, named, output, recorder.stack, user_place())
        recorder.append(call)
        recorder.assign(output, call)
        return output


def _found(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict) and not name.startswith("_"):
        for key, each in value.items():
            yield from _found(f"{name}_{key}", each)
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            yield from _found(f"{name}_{i}", each)


def _map(item: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(item, (tuple, list)) and not isinstance(item, torch.Size):
        return type(item)(_map(each, change) for each in item) if type(item) in (tuple, list) else item
    return change(item)


def _is_device(item: Any) -> bool:
    words = ("cpu", "cuda", "meta", "mps", "xpu")
    return isinstance(item, torch.device) or (isinstance(item, str) and item.partition(":")[0] in words)


def _on_cpu(item: Any) -> Any:
    return torch.device("cpu") if is_meta(item) else item


def _is_factory(function: Callable[..., Any]) -> bool:
    """Whether a function makes a tensor of nothing, on the default device unless told otherwise."""
    return getattr(function, "__name__", "") in _FACTORIES


_FACTORIES = {
    *("tensor", "zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "eye", "rand", "randn", "randint"),
    *("randperm", "hann_window", "hamming_window", "blackman_window", "kaiser_window", "tril_indices", "triu_indices"),
}
_TENSOR_ATTRIBUTES = {"T", "mT", "H", "mH", "data", "real", "imag"}
_SIZES = {"size", "numel", "__len__", "nelement"}
_DEVICES = {"cpu", "cuda", "xpu"}
_SAME = {"as_tensor", "asarray", "requires_grad_", "atleast_3d", "atleast_2d", "atleast_1d"}
_PREDICATES = {"dim", "is_contiguous", "is_floating_point", "is_complex", "stride", "element_size", "storage_offset"}
