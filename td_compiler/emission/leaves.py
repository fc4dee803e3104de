"""Subclasses of torch's layers from outside torch: written as the layer itself, or as what their forward computes."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

__all__ = ["is_of_torch", "is_own", "plain_layer", "trace_forward"]

_CONSTRUCTION = {"__init__", "reset_parameters", "extra_repr"}


def is_of_torch(kind: type[nn.Module]) -> bool:
    """Whether emitted source can name a class as `nn.Name`."""
    return getattr(nn, kind.__name__, None) is kind


def is_own(kind: type[nn.Module]) -> bool:
    """Whether a class is one of this project's, which emitted source carries as it is."""
    return kind.__module__.startswith("td_compiler.layers.")


def plain_layer(module: nn.Module) -> nn.Module:
    """The layer of torch that computes what a subclass of it computes; the module itself where there is none.

    A subclass that only has a constructor of its own, or another way to write the same forward, is such a layer.
    """
    layer = None if is_of_torch(type(module)) else _as_torch_layer(module)
    if layer is None:
        return module
    if not _overrides(type(module), type(layer)):
        return layer
    own, plain = trace_forward(module), trace_forward(layer)
    return layer if own is not None and plain is not None and _steps(own) == _steps(plain) else module


def trace_forward(module: nn.Module) -> fx.Graph | None:
    """What a subclass of a torch layer computes, for maps of any size and in both modes; None where a trace misses it.

    Functions that cannot be traced, such as one that pads by the size of its map, are calls in the graph.
    """
    if _as_torch_layer(module) is None:
        return None
    for whole in ((), _functions(module)):
        graphs = [_trace(module, whole, training=training) for training in (False, True)]
        if graphs[0] is not None and graphs[1] is not None and _steps(graphs[0]) == _steps(graphs[1]):
            return graphs[0]
    return None


def _steps(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """What a graph does, whatever its values are called."""
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    return [
        (n.op, "" if n.op == "placeholder" else n.target, *fx.node.map_arg((n.args, n.kwargs), numbers.__getitem__))
        for n in graph.nodes
    ]


def _as_torch_layer(module: nn.Module) -> nn.Module | None:
    """A shallow copy of a module without children as its nearest class of torch; None if that is `nn.Module`."""
    base = next(kind for kind in type(module).__mro__ if is_of_torch(kind))
    if base is nn.Module or module._modules:
        return None
    layer = copy.copy(module)
    layer.__class__ = base
    return layer


def _overrides(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether a subclass has a method in which what it computes may differ from its base."""
    between = kind.__mro__[: kind.__mro__.index(base)]
    methods = {name for each in between for name, value in vars(each).items() if callable(value)}
    return bool(methods - _CONSTRUCTION)


def _functions(module: nn.Module) -> tuple[Callable[..., Any], ...]:
    """The functions, none of torch's, that a forward calls by name."""
    forward = type(module).forward
    names = forward.__code__.co_names
    found = (forward.__globals__.get(name) for name in names)
    return tuple(f for f in found if isinstance(f, types.FunctionType) and f.__module__.partition(".")[0] != "torch")


def _trace(module: nn.Module, whole: tuple[Callable[..., Any], ...], *, training: bool) -> fx.Graph | None:
    """Like `fx.Tracer` for a module without children, which would patch `nn.Module` for all threads meanwhile."""
    forward = type(module).forward
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    module = copy.copy(module)  # tracing may set attributes
    module.training = training
    for registry in ("_parameters", "_buffers"):
        module.__dict__[registry] = _Reads(vars(module)[registry], tracer)
    try:
        _, _ = inspect.signature(forward).parameters  # a function of the map alone
        image = fx.Proxy(graph.placeholder("x"), tracer)
        graph.output(tracer.create_arg(_calling_whole(forward, whole, tracer)(module, image)))
    except Exception:  # whatever a class does that a trace cannot follow
        return None
    return graph


class _Reads(dict[str, Any]):
    """A module's tensors by name; reading one is a step of a trace."""

    def __init__(self, tensors: Mapping[str, Any], tracer: fx.proxy.TracerBase) -> None:
        super().__init__(tensors)
        self._tracer = tracer
        self._read: dict[str, fx.Proxy] = {}

    def __getitem__(self, name: str) -> Any:
        if super().__getitem__(name) is None:
            return None
        if name not in self._read:
            self._read[name] = self._tracer.create_proxy("get_attr", name, (), {})
        return self._read[name]


def _calling_whole(
    forward: Any, whole: tuple[Callable[..., Any], ...], tracer: fx.proxy.TracerBase
) -> Callable[..., Any]:
    """A forward in which some functions, called by name, are steps of a trace; the forward itself stays as it is."""

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: tracer.create_proxy("call_function", function, args, kwargs)

    steps = {name: step(value) for name, value in forward.__globals__.items() if any(value is f for f in whole)}
    made = types.FunctionType(
        forward.__code__, {**forward.__globals__, **steps}, None, forward.__defaults__, forward.__closure__
    )
    made.__kwdefaults__ = forward.__kwdefaults__
    return made
