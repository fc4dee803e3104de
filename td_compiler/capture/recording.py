"""One run of a network on the meta device, call by call: what it computed, in which module, on which line (DESIGN 1).

The user's code runs as it is. A `TorchFunctionMode` sees every call of torch, hooks on the weightless copy say in which
module, and fold the inside of a layer into one call. Nothing outside the copy is touched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from td_compiler.capture.leaves import is_declared_leaf, is_leaf
from td_compiler.capture.numbers import Dim, Size
from td_compiler.capture.shapes import returned
from td_compiler.capture.spelling import in_place, is_random, spelled
from td_compiler.errors import ConversionError

__all__ = [
    "Call",
    "Constant",
    "Image",
    "NeedsScripts",
    "Of",
    "Parameter",
    "Place",
    "Recording",
    "Result",
    "Value",
    "needs_data",
    "record",
]

Place = tuple[str, int]
"""A line of the user's code: its file and number."""

Stack = tuple[tuple[str, type], ...]
"""The modules that a call runs in, outermost first: paths and classes."""

_OURS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<")


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
        notes: for `node.meta`: `opaque`, `factor`.
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


def needs_data(error: BaseException) -> bool:
    """Whether an exception says that the values of a tensor were asked for, which the meta device has not."""
    text = str(error)
    return any(words in text for words in ("meta tensor", "meta device", "data-dependent")) and isinstance(
        error, (RuntimeError, NotImplementedError, TypeError, ValueError)
    )


def record(
    root: nn.Module, tensors: dict[int, Value], images: torch.Tensor, opaque: set[str], *, scripts: bool = False
) -> Recording:
    """Run a weightless network on images (N, C, H, W) on the meta device.

    Args:
        root: the weightless network, in the mode to look at.
        tensors: its parameters and buffers, and those of the network that it was copied from, by `id`.
        opaque: paths of modules that need values to run: taken to keep the shape of their first input.
        scripts: whether functions compiled by TorchScript are looked into, at some cost.
    """
    recorder = _Recorder(root, dict(tensors), images, opaque)
    handles = recorder.watch()
    try:
        with torch.no_grad(), recorder:
            if scripts:
                with _Kernels(recorder):
                    output = root(images)
            else:
                output = root(images)
        recorder.recording.outputs = list(recorder.named_tensors(output))
    except ConversionError:
        raise
    except (Exception, SystemExit) as error:
        if recorder.needs_scripts or isinstance(error, NeedsScripts):
            raise NeedsScripts from None
        recorder.recording.error = error
        recorder.recording.error_stack = recorder.error_stack or recorder.stack
        recorder.recording.error_place = _place_of(error)
    finally:
        for handle in handles:
            handle.remove()
        recorder.restore()
    return recorder.recording


class NeedsScripts(Exception):
    """A function compiled by TorchScript ran, whose operators only another run shows."""


class _Recorder(TorchFunctionMode):
    def __init__(self, root: nn.Module, tensors: dict[int, Value], images: torch.Tensor, opaque: set[str]) -> None:
        super().__init__()
        self.root = root
        self.recording = Recording()
        self.values: dict[int, Value] = tensors
        self.values[id(images)] = Image()
        self.alive: list[Any] = [images]  # so that no `id` is used twice
        self.images = images
        self.latest: torch.Tensor = images
        self.stack: Stack = ()
        self.error_stack: Stack = ()
        self.depth = 0  # of layers: what runs inside one is not recorded
        self.busy = False  # while torch computes a recorded call
        self.dispatching = False
        self.needs_scripts = False
        self._opaque = opaque
        self._open: list[Span | None] = []
        self._given: tuple[Any, ...] = ()
        self._stubs: list[nn.Module] = []
        self._mirrors: dict[int, torch.Tensor] = {}  # constants on the meta device
        self._stale: dict[int, tuple[torch.Tensor, Any, Place]] = {}  # tensor -> the changed view of it, its index
        self._views: dict[int, tuple[torch.Tensor, Any]] = {}  # a part taken by index -> of what, which
        self._storages: dict[int, list[torch.Tensor]] = {}
        self._function_args: dict[int, tuple[Any, ...]] = {}  # frame of an autograd function -> what it was given
        self._names: dict[int, str] | None = None

    # ---- modules

    def watch(self) -> list[Any]:
        """Hook every module; returns the hooks' handles."""
        handles: list[Any] = []
        seen: set[int] = set()
        for path, module in self.root.named_modules(remove_duplicate=False):
            if id(module) in seen or not path:
                continue
            seen.add(id(module))
            whole = is_leaf(module) or path in self._opaque
            if path in self._opaque or (is_declared_leaf(module) and not hasattr(module, "weight")):
                self._stub(path, module)
            bare = not whole and next(module.parameters(), None) is None
            enter, leave = partial(self._enter, path, whole, bare), partial(self._leave, path, whole)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, prepend=True, with_kwargs=True, always_call=True))
        return handles

    def _stub(self, path: str, module: nn.Module) -> None:
        """Let a module that cannot run without values return something of its input's shape instead."""
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            try:
                return own(*args, **kwargs)
            except Exception as error:
                first = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
                if first is None or not (needs_data(error) or path in self._opaque):
                    raise
                module.__dict__["_was_opaque"] = True
                return torch.empty_like(first)

        module.__dict__["forward"] = forward
        module.__dict__["_own_forward"] = own if "forward" in vars(module) and own is not forward else None
        self._stubs.append(module)

    def restore(self) -> None:
        """Take the stand-ins away again."""
        for module in self._stubs:
            module.__dict__.pop("forward", None)
            module.__dict__.pop("_own_forward", None)
            module.__dict__.pop("_was_opaque", None)

    def _enter(
        self, path: str, whole: bool, bare: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.depth or self.busy:
            self.depth += 1
        elif whole:
            self.depth = 1
            self._given = (self._refer(args), self._refer(kwargs), args, kwargs, _user_place())
        else:
            if bare:
                given = self._refer(args), self._refer(kwargs)
                start = len(self.recording.calls)
                self._open.append(Span(path, module, *given, start, self.stack, _user_place()))
            else:
                self._open.append(None)
            self.stack = (*self.stack, (path, type(module)))

    def _leave(
        self, path: str, whole: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        failed = output is None and sys.exc_info()[0] is not None
        if failed and not self.error_stack:
            self.error_stack = (*self.stack, (path, type(module))) if self.depth == 1 else self.stack
            self.recording.error_inputs = [tuple(tensor.shape) for tensor in _tensors((args, kwargs))]
        if self.depth > 1:
            self.depth -= 1
        elif self.depth == 1:
            self.depth = 0
            if output is not None:
                self._record_layer(path, module, output)
        else:
            self.stack = self.stack[:-1]
            span = self._open.pop()
            if span is not None and output is not None:
                span.stop, span.output = len(self.recording.calls), self._refer(output)
                if span.stop > span.start:
                    self.recording.spans.append(span)

    def _record_layer(self, path: str, module: nn.Module, output: Any) -> None:
        args, kwargs, given, named, place = self._given
        notes = {"opaque": True} if module.__dict__.pop("_was_opaque", False) else {}
        call = Call("call_module", path, args, kwargs, output, self.stack, place, module, notes)
        self.recording.calls.append(call)
        first = next((a for a in (*given, *named.values()) if isinstance(a, torch.Tensor)), None)
        if first is not None and output is first:
            self._mark_stale(first, place)
        self._assign(output, call)

    # ---- functions

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.busy or self.depth:
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
        elif name == "__setitem__":
            return self._set_item(*args)
        elif name == "to" or name in _DEVICES:
            moved, args, kwargs = self._stay(name, args, kwargs)
            if moved:
                return args[0]
        return self._record(function, name, args, kwargs)

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
        if id(tensor) in self._stale:
            self._renew(tensor)
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

    def _record(self, function: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name in _PREDICATES:
            return self._compute(function, args, kwargs)
        given, named = self._refer(args), {key: self._refer(value) for key, value in kwargs.items()}
        place, autograd = self._look(sys._getframe(1))
        if "prims::" in str(getattr(function, "__qualname__", "")) and not self.dispatching:
            self.needs_scripts = True
            raise NeedsScripts
        before = args[0] if args else None
        output = self._compute(function, args, kwargs)
        if not _has_tensor(output):
            return output
        random = is_random(name)
        changed = in_place(function, name, kwargs)
        op, target, given, named = spelled(function, name, given, named, keep=random)
        call = Call(op, target, given, named, output, self.stack, place)
        self.recording.calls.append(call)
        if random:
            call.notes["random"] = True
        if autograd is not None:
            call.notes["autograd"] = autograd
        if changed and isinstance(before, torch.Tensor):
            self._mark_stale(before, place)
        elif output is before and name in _SAME:
            self.recording.calls.pop()
            return output
        self._assign(output, call)
        if op == "call_function" and name == "__getitem__" and isinstance(output, torch.Tensor):
            self._views[id(output)] = (args[0], args[1])
        return output

    def _compute(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a function: on the meta device where a traced tensor is among its arguments, else for real."""
        traced = real = False
        for tensor in _tensors((args, kwargs)):
            traced, real = traced or tensor.is_meta, real or not tensor.is_meta
        if traced and real:
            args, kwargs = _map(args, self._mirror), {key: _map(value, self._mirror) for key, value in kwargs.items()}
        elif not traced and self._names_meta(args, kwargs):
            args, kwargs = _map(args, _on_cpu), {key: _map(value, _on_cpu) for key, value in kwargs.items()}
        elif not traced and not real and "device" not in kwargs and is_factory(function):
            kwargs = {**kwargs, "device": "cpu"}
        busy, self.busy = self.busy, True
        try:
            made = returned(function, args, kwargs) if traced and not torch.is_grad_enabled() else None
            return function(*args, **kwargs) if made is None else made
        finally:
            self.busy = busy

    def _names_meta(self, args: Any, kwargs: dict[str, Any]) -> bool:
        return any(_is_meta(a) for a in (*args, *kwargs.values()))

    def _mirror(self, item: Any) -> Any:
        """A constant on the meta device."""
        if not isinstance(item, torch.Tensor) or item.is_meta or item.dim() == 0:
            return item
        if id(item) not in self._mirrors:
            self._mirrors[id(item)] = item.detach().to("meta")
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

    def _refer(self, item: Any) -> Any:
        kind = type(item)
        if kind is int or kind is float or kind is bool or item is None or kind is str or kind is Dim:
            return item
        if isinstance(item, torch.Tensor):
            return self._value(item)
        if kind is tuple or kind is list or kind is torch.Size:
            made = [self._refer(each) for each in item]
            return made if kind is list else tuple(made)
        if isinstance(item, dict):
            return {key: self._refer(value) for key, value in item.items()}
        if kind is slice:
            return slice(self._refer(item.start), self._refer(item.stop), self._refer(item.step))
        if isinstance(item, torch.device) and item.type == "meta":
            return Of(self._value(self.latest), "device")
        if hasattr(item, "item") and type(item).__module__ == "numpy":
            return item.item() if not getattr(item, "shape", ()) else item.tolist()
        return item

    def _value(self, tensor: torch.Tensor) -> Value:
        if id(tensor) in self._stale:
            self._renew(tensor)
        value = self.values.get(id(tensor))
        if value is None:
            value = self._unknown(tensor)
            self.values[id(tensor)] = value
            self.alive.append(tensor)
        return value

    def _unknown(self, tensor: torch.Tensor) -> Value:
        if isinstance(tensor, nn.Parameter):
            place, owner = _owner_of(tensor)
            raise ConversionError(
                f"{owner or 'a module with parameters'} is made in forward, at {_at(place)}: its parameters would"
                " be new ones at every call; make it in __init__ and keep it as an attribute."
            )
        if tensor.is_meta:
            raise NeedsScripts
        return Constant(tensor.detach(), self._name_of(tensor))

    def _name_of(self, tensor: torch.Tensor) -> str:
        """Where a module keeps a tensor that is no buffer, as a path; where none does, a name in the module at hand."""
        if self._names is None:
            self._names = {}
            for path, module in self.root.named_modules():
                for name, value in vars(module).items():
                    for inner, found in _found(name, value):
                        self._names.setdefault(id(found), f"{path}.{inner}" if path else inner)
        home = self.stack[-1][0] if self.stack else ""
        return self._names.get(id(tensor)) or (f"{home}.constant" if home else "constant")

    def _assign(self, output: Any, call: Call, at: tuple[int | str, ...] = ()) -> None:
        if isinstance(output, torch.Tensor):
            self.values[id(output)] = Result(call, at)
            self.alive.append(output)
            if output.is_meta:
                self.latest = output
            if type(output) is torch.Tensor and call.op != "call_module":
                key = output.untyped_storage()._cdata
                self._storages.setdefault(key, []).append(output)
        elif isinstance(output, dict):
            for key, value in output.items():
                self._assign(value, call, (*at, key))
        elif isinstance(output, (tuple, list)):
            for i, value in enumerate(output):
                self._assign(value, call, (*at, i))

    # ---- writing in place

    def _mark_stale(self, changed: torch.Tensor, place: Place) -> None:
        """After a tensor was changed in place: what shares its memory has changed as well."""
        self._stale.pop(id(changed), None)
        value = self.values.get(id(changed))
        if isinstance(value, Parameter):
            self.recording.writes.setdefault(value.path, place)
        base, index = self._views.get(id(changed), (None, None))
        for other in self._storages.get(changed.untyped_storage()._cdata, ()):
            if other is not changed:
                self._stale[id(other)] = (changed, index if other is base else None, place)
        if base is not None:
            self._stale[id(base)] = (changed, index, place)

    def _renew(self, tensor: torch.Tensor) -> None:
        """Give a tensor, a part of which was changed in place, the value that it has now."""
        part, index, place = self._stale.pop(id(tensor))
        if index is None:
            return self.recording.refusals.append(_refused_write(place))
        self._set_item(tensor, index, part, place)

    def _set_item(self, tensor: torch.Tensor, index: Any, value: Any, place: Place | None = None) -> None:
        """`tensor[index] = value` along one axis: the parts before and behind what is written, and it between."""
        place = place or _user_place()
        self._stale.pop(id(tensor), None)
        if id(tensor) not in self.values and not tensor.is_meta:
            return self._compute(torch.Tensor.__setitem__, (tensor, index, value), {})
        items = index if isinstance(index, tuple) else (index,)
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items = (*items[:at], *[slice(None)] * (tensor.dim() - len(items) + 1), *items[at + 1 :])
        cut = [axis for axis, item in enumerate(items) if not (isinstance(item, slice) and item == slice(None))]
        if len(cut) == 1 and type(at := items[cut[0]]) in (int, Dim):  # one row of many: a slice of one
            items = (*items[: cut[0]], slice(at, at + 1 or None), *items[cut[0] + 1 :])
            if isinstance(value, torch.Tensor) and value.dim() == tensor.dim() - 1:
                value = self._record(torch.unsqueeze, "unsqueeze", (value, cut[0]), {})
        if len(cut) > 1 or not all(isinstance(item, slice) and item.step in (None, 1) for item in items):
            return self.recording.refusals.append(_refused_write(place))
        axis = cut[0] if cut else 1
        bounds: Any = items[axis] if cut else slice(None)
        full = slice(None)

        def piece(part: slice) -> torch.Tensor:
            made: torch.Tensor = self._record(
                torch.Tensor.__getitem__, "__getitem__", (tensor, (*[full] * axis, part)), {}
            )
            return made

        start, stop, extent = bounds.start or 0, bounds.stop, tensor.shape[axis]
        inside = len(range(*slice(start, stop).indices(extent)))
        shape = (*tensor.shape[:axis], inside, *tensor.shape[axis + 1 :])
        if not isinstance(value, torch.Tensor):
            value = self._record(torch.full_like, "full_like", (piece(slice(bounds.start, stop)), value), {})
        elif tuple(value.shape) != shape:
            value = self._record(torch.Tensor.expand_as, "expand_as", (value, piece(slice(bounds.start, stop))), {})
        parts = [piece(slice(None, start))] if start else []
        parts.append(value)
        if stop is not None and (stop < 0 or stop < extent):
            parts.append(piece(slice(stop, None)))
        new = self._record(torch.cat, "cat", (parts, axis), {}) if len(parts) > 1 else value
        self.values[id(tensor)] = self.values[id(new)]
        return None

    # ---- places

    def _look(self, frame: Any) -> tuple[Place, tuple[Any, ...] | None]:
        """The line of user code that a call stands on; and the autograd function in whose forward it runs, if any."""
        place: Place | None = None
        while frame is not None:
            code = frame.f_code
            if not code.co_filename.startswith(_OURS):
                place = place or (code.co_filename, frame.f_lineno)
                if code.co_argcount and code.co_name == "forward" and code.co_varnames[0] != "self":
                    first = frame.f_locals.get(code.co_varnames[0])
                    if isinstance(first, BackwardCFunction):
                        return place, self._function(frame, first)
                if code.co_name == "forward" or code.co_name == "__call__":
                    break
            frame = frame.f_back
        return place or ("", 0), None

    def _function(self, frame: Any, context: Any) -> tuple[Any, ...]:
        """(frame, class, arguments) of the forward of an autograd function; its arguments as they came in."""
        kind = type(context)._forward_cls  # type: ignore[attr-defined]
        if id(frame) not in self._function_args:
            names = frame.f_code.co_varnames[1 : frame.f_code.co_argcount]
            self.alive.append(frame)
            self._function_args[id(frame)] = tuple(self._refer(frame.f_locals[name]) for name in names)
        return id(frame), kind, self._function_args[id(frame)]


class _Kernels(TorchDispatchMode):
    """Records what code outside Python (TorchScript) computes, operator by operator."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        recorder.dispatching = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = self.recorder
        kwargs = kwargs or {}
        if recorder.busy or recorder.depth:
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
        given, named = recorder._refer(args), {key: recorder._refer(value) for key, value in kwargs.items()}
        op, target, given, named = spelled(plain, name, given, named)
        call = Call(op, target, given, named, output, recorder.stack, _user_place())
        recorder.recording.calls.append(call)
        recorder._assign(output, call)
        return output


@dataclass(frozen=True, eq=False)
class Of:
    """The device or dtype of a value."""

    value: Value
    attribute: str


def _refused_write(place: Place) -> str:
    return (
        f"a part of a map is changed in place at {_at(place)}: write it as a new map, with torch.cat, torch.stack or"
        " torch.where."
    )


def _at(place: Place | None) -> str:
    return f"{place[0]}:{place[1]}" if place and place[0] else "an unknown line"


def _user_place() -> Place:
    """The innermost line outside torch and this package: the user's own."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_OURS):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "", 0


def _place_of(error: BaseException) -> Place | None:
    """The innermost line of the user's code in an exception's traceback."""
    place, trace = None, error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith(_OURS):
            place = filename, trace.tb_lineno
        trace = trace.tb_next
    return place


def _owner_of(tensor: torch.Tensor) -> tuple[Place, str]:
    """Where in the user's code, and in which class of module, a parameter is used."""
    frame: Any = sys._getframe(1)
    owner = ""
    while frame is not None:
        module = frame.f_locals.get("self")
        if (
            isinstance(module, nn.Module)
            and not owner
            and any(each is tensor for each in module.parameters(recurse=False))
        ):
            owner = type(module).__name__
        frame = frame.f_back
    return _user_place(), owner


def _found(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict) and not name.startswith("_"):
        for key, each in value.items():
            yield from _found(f"{name}_{key}", each)
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            yield from _found(f"{name}_{i}", each)


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (tuple, list)):
        for each in item:
            yield from _tensors(each)
    elif isinstance(item, dict):
        for each in item.values():
            yield from _tensors(each)


def _has_tensor(item: Any) -> bool:
    return next(_tensors(item), None) is not None


def _map(item: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(item, (tuple, list)) and not isinstance(item, torch.Size):
        return type(item)(_map(each, change) for each in item) if type(item) in (tuple, list) else item
    return change(item)


def _is_device(item: Any) -> bool:
    words = ("cpu", "cuda", "meta", "mps", "xpu")
    return isinstance(item, torch.device) or (isinstance(item, str) and item.partition(":")[0] in words)


def _is_meta(item: Any) -> bool:
    return isinstance(item, torch.device) and item.type == "meta"


def _on_cpu(item: Any) -> Any:
    return torch.device("cpu") if _is_meta(item) else item


def is_factory(function: Callable[..., Any]) -> bool:
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
