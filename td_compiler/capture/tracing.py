"""Tracing and computing at once: every node of the graph knows its value, on the meta device."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from td_compiler.capture.meta import ShapesOnly
from td_compiler.capture.proxies import Mode, ValueProxy
from td_compiler.errors import ConversionError
from td_compiler.graph.operators import layer_row

__all__ = ["NeedsLeaf", "ValueTracer", "evaluate", "leaf"]

T = TypeVar("T", bound=type[nn.Module])
_LEAVES: set[type[nn.Module]] = set()
_PROBE = 240  # divisible by every usual stride
_BATCH = 2  # not 1, so that nothing squeezes or specialises on it


def leaf(module_class: T) -> T:
    """Declare that a module class is not to be traced through but kept whole; usable as a decorator.

    A leaf must not change the size of the map, and works only where its input keeps the width that it was made for,
    unless the operator table has a row for it (:mod:`td_compiler.graph.operators`).
    """
    _LEAVES.add(module_class)
    return module_class


class NeedsLeaf(Exception):
    """Control flow that tracing cannot follow, with the path of the innermost module that it stands in."""

    def __init__(self, path: str, class_name: str, where: str) -> None:
        self.path = path
        named = f"module {path!r} ({class_name})" if path else f"the forward of {class_name}"
        super().__init__(
            f"control flow in {named} depends on the values of a tensor, at {where}: move it into a submodule that"
            f" keeps the shape of its input, and declare its class a leaf with td_compiler.leaf(Class)."
        )


class ValueTracer(fx.Tracer):
    """Traces and computes at once, on the meta device."""

    def __init__(self, input_size: tuple[int, int, int], leaves: set[str]) -> None:
        super().__init__(param_shapes_constant=True)
        self._input_size = input_size
        self._leaf_paths = leaves
        self._computing = False
        self._paths: dict[int, str] = {}  # where each tensor is: torch's tracer searches all of them at every access
        self.branches_dropped: list[str] = []

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a module; `self.training` of what is traced through becomes part of the graph."""
        self._paths = {id(t): name for name, t in itertools.chain(root.named_parameters(), root.named_buffers())}
        self._set_modes(root)
        try:
            return super().trace(root, concrete_args)
        finally:
            for module in root.modules():
                module.__dict__["training"] = False

    def _set_modes(self, root: nn.Module, path: str = "") -> None:
        root.__dict__["training"] = Mode(self, path)
        for name, child in root.named_children():
            inner = f"{path}.{name}" if path else name
            if not self.is_leaf_module(child, inner):
                self._set_modes(child, inner)

    def ask_mode(self, path: str) -> None:
        """A traced module branches on its mode: keep it whole if it has no parameters, else take the branch of eval."""
        if self._computing or path in self.branches_dropped:
            return
        module = self.root.get_submodule(path)
        if path and next(module.parameters(), None) is None:
            raise NeedsLeaf(path, type(module).__name__, _user_line())
        self.branches_dropped.append(path)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Mode):
            return self.create_node("get_attr", "training", (), {})
        if isinstance(a, torch.Tensor) and id(a) in self._paths:
            return self.create_node("get_attr", self._paths[id(a)], (), {})
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ValueProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in _LEAVES or module_qualified_name in self._leaf_paths:
            return True
        if layer_row(m) is not None and not m._modules:
            return True
        return super().is_leaf_module(m, module_qualified_name) and not isinstance(m, nn.Sequential)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        first, others = parameters[0] if parameters else None, parameters[1:]
        if first is None or first.kind is inspect.Parameter.VAR_KEYWORD:
            raise ConversionError(
                f"{type(self.root).__name__}.forward takes no images: it must take a batch (N, C, H, W)."
            )
        required = [
            p.name for p in others if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if required:
            raise ConversionError(
                f"{type(self.root).__name__}.forward needs {', '.join(required)} beside the images: give them defaults."
            )
        return root_fn, [self.root, self.create_proxy("placeholder", first.name, (), {})]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        factor = None if self.is_leaf_module(m, path) else self._shrinks(m, args, kwargs)
        if factor is not None:
            proxy = self.create_proxy("call_module", path, args, kwargs)
            proxy.node.meta["factor"] = factor
            return proxy
        return super().call_module(m, forward, args, kwargs)

    def _shrinks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
        """The factor by which a module without parameters makes any map smaller: a pooling of the user's own."""
        if len(args) != 1 or kwargs or not isinstance(args[0], fx.Proxy) or next(module.parameters(), None) is not None:
            return None
        before = args[0].node.meta["value"]
        if not isinstance(before, torch.Tensor) or before.dim() != 4:
            return None
        try:  # on maps so large that borders do not count
            with self._shapes_only():
                factor = _factor(module, before, _PROBE)
                shrinks = len(factor) == 2 and min(factor) > 0 and factor != (1, 1)
                shrinks = shrinks and factor == _factor(module, before, 2 * _PROBE)
        except Exception:  # whatever it is, tracing through it will say it better
            return None
        return (factor[0], factor[1]) if shrinks else None

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._computing or not isinstance(attr_val, nn.Parameter) or id(attr_val) not in self._paths:
            return attr_val
        path = self._paths[id(attr_val)]
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]

    def create_node(self, kind: str, target: Any, *rest: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, *rest, **named)
        if kind == "get_attr":
            node.meta["value"] = self._compute(node)
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if "value" not in proxy.node.meta:
            proxy.node.meta["value"] = self._compute(proxy.node)
        return proxy

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return torch.empty(_BATCH, *self._input_size, device="meta", dtype=self._dtype())
        try:
            with self._shapes_only():
                return evaluate(node, self.root, lambda n: n.meta["value"])
        except (ConversionError, NeedsLeaf):
            raise
        except Exception as error:
            needs_data = "meta tensor" in str(error) or "data-dependent" in str(error)
            if needs_data and node.op == "call_module":
                node.meta["opaque"] = True
                return evaluate(node, self.root, lambda n: n.meta["value"])
            if needs_data:
                self.refuse_data()
            raise _refused(self, node, error) from error

    @contextlib.contextmanager
    def _shapes_only(self) -> Iterator[None]:
        """Modules called in here compute shapes; they are not traced."""
        self._computing = True
        try:
            with ShapesOnly():
                yield
        finally:
            self._computing = False

    def _dtype(self) -> torch.dtype:
        floating = (p.dtype for p in self.root.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    def refuse_data(self) -> None:
        """Say which module's control flow depends on data, and on which line."""
        path = self.scope.module_path
        owner = self.root.get_submodule(path) if path else self.root
        raise NeedsLeaf(path, type(owner).__name__, _user_line())


def _factor(module: nn.Module, like: torch.Tensor, side: int) -> tuple[int, ...]:
    """The factors by which a module makes a square map smaller, one for every axis after the channels."""
    made = module(like.new_empty(*like.shape[:2], side, side))
    return tuple(round(side / extent) for extent in made.shape[2:])


def evaluate(node: fx.Node, root: nn.Module, value_of: Callable[[fx.Node], Any]) -> Any:
    """What a node computes, given the values of the nodes that it reads; its paths are those of `root`.

    An opaque layer, one that needs data to run, is taken to keep the shape of its input.
    """
    args, kwargs = map_aggregate((node.args, node.kwargs), lambda a: value_of(a) if isinstance(a, fx.Node) else a)
    if node.meta.get("opaque"):
        return args[0]
    with torch.no_grad():
        if node.op == "get_attr":
            if node.target == "training":
                return False
            value: Any = root
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        if node.op == "call_module":
            return root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "output":
            return args[0]
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _user_line() -> str:
    """The innermost line outside torch and this package: the user's own."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith((*ours, "<"))]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown line"


def _refused(tracer: ValueTracer, node: fx.Node, error: Exception) -> ConversionError:
    values = [n.meta["value"] for n in node.all_input_nodes]
    shapes = [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]
    where = str(node.target) if node.op == "call_module" else tracer.scope.module_path
    size = "x".join(map(str, tracer._input_size))
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConversionError(
        f"the network refuses images of {size} at {where or type(tracer.root).__name__!r}"
        f" (inputs {', '.join(map(str, shapes)) or 'none'}): {reason}; give another input_size=(C, H, W)."
    )
