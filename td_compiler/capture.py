"""From a module to a graph: tracing on a weightless copy, with every node's value at hand (SPEC 1.1).

The source model is never run and never changed: a *skeleton*, the same modules with parameters on the meta device, is
traced instead, so a network of any size is captured in about the time of one Python forward pass. Every node carries
`meta["value"]`, what it computed (tensors on the meta device, plain numbers for sizes).
"""

from __future__ import annotations

import copy
import inspect
import operator
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_aggregate

from td_compiler.errors import ConversionError

__all__ = ["Capture", "capture", "evaluate", "leaf", "skeleton"]

T = TypeVar("T", bound=type[nn.Module])
_LEAVES: set[type[nn.Module]] = set()
_BATCH = 2  # not 1, so that nothing squeezes or specialises on it


def leaf(module_class: T) -> T:
    """Declare that a module class is not to be traced through but kept whole; usable as a decorator.

    A leaf must not change the size of the map, and works only where its input keeps the width that it was made for,
    unless the operator table has a row for it (:mod:`td_compiler.operators`).
    """
    _LEAVES.add(module_class)
    return module_class


class Capture:
    """A traced network.

    Attributes:
        graph: its operations; `node.meta["value"]` is what each computed, `node.meta["nn_module_stack"]` where.
        modules: the skeleton's modules by path, parameters on the meta device.
        image: the placeholder of the images (N, C, H, W).
        output: the node of the class scores (N, K).
    """

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph = graph
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.image = next(node for node in graph.nodes if node.op == "placeholder")
        self.output: fx.Node = graph.output_node().args[0]  # type: ignore[assignment]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The layer that a `call_module` node calls, else None."""
        return self.modules[str(node.target)] if node.op == "call_module" else None


def skeleton(model: nn.Module) -> nn.Module:
    """A deep copy of a model in evaluation mode whose parameters and buffers are on the meta device.

    No weight is copied or read, so this costs the memory of the module objects alone.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def capture(model: nn.Module, input_size: tuple[int, int, int]) -> Capture:
    """Trace a model for images of `input_size` (C, H, W).

    A submodule whose control flow depends on data becomes a leaf by itself; where that is the network itself, it is an
    error.

    Raises:
        ConversionError: if the model cannot be traced, refuses the input size or returns no class scores.
    """
    bones = skeleton(model)
    leaves: set[str] = set()
    while True:
        tracer = _Tracer(input_size, leaves)
        try:
            graph = tracer.trace(bones)
            break
        except _DataDependent as reason:
            if not reason.path or reason.path in leaves:
                raise ConversionError(str(reason)) from None
            leaves.add(reason.path)
    _drop_asserts(graph)
    captured = Capture(_dropout_as_modules(graph, bones), bones)
    _check_output(captured)
    return captured


class _DataDependent(Exception):
    """Control flow that depends on tensor data, with the path of the innermost module and the user's line."""

    def __init__(self, path: str, class_name: str, where: str) -> None:
        self.path = path
        named = f"module {path!r} ({class_name})" if path else f"the forward of {class_name}"
        super().__init__(
            f"control flow in {named} depends on the values of a tensor, at {where}: move it into a submodule that"
            f" keeps the shape of its input, and declare its class a leaf with td_compiler.leaf(Class)."
        )


class _Proxy(fx.Proxy):
    """A proxy that answers questions about sizes with the numbers of this trace."""

    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)

    @property
    def value(self) -> Any:
        return self.node.meta["value"]

    def _number(self) -> Any:
        if isinstance(self.value, torch.Tensor):
            self.tracer.refuse_data()  # type: ignore[attr-defined]
        return self.value

    def __bool__(self) -> bool:
        return bool(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __index__(self) -> int:
        return operator.index(self._number())

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self.value))])


class _Attribute(_Proxy):
    """`x.name`: an attribute read if used as a value, a method call if called."""

    def __init__(self, root: _Proxy, name: str) -> None:
        self.root, self.attr, self.tracer = root, name, root.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


class _Tracer(fx.Tracer):
    """Traces and computes at once, on the meta device."""

    def __init__(self, input_size: tuple[int, int, int], leaves: set[str]) -> None:
        super().__init__(param_shapes_constant=True)
        self._input_size = input_size
        self._leaf_paths = leaves
        self._computing = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in _LEAVES or module_qualified_name in self._leaf_paths:
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
        return forward(*args, **kwargs) if self._computing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

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
        self._computing = True
        try:
            if node.op == "placeholder":
                return torch.empty(_BATCH, *self._input_size, device="meta", dtype=self._dtype())
            return evaluate(node, self.root, lambda n: n.meta["value"])
        except (ConversionError, _DataDependent):
            raise
        except Exception as error:
            needs_data = "meta tensor" in str(error) or "data-dependent" in str(error)
            if needs_data and node.op == "call_module":
                node.meta["opaque"] = True
                return evaluate(node, self.root, lambda n: n.meta["value"])
            if needs_data:
                self.refuse_data()
            raise _refused(self, node, error) from error
        finally:
            self._computing = False

    def _dtype(self) -> torch.dtype:
        floating = (p.dtype for p in self.root.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    def refuse_data(self) -> None:
        """Say which module's control flow depends on data, and on which line."""
        path = self.scope.module_path
        owner = self.root.get_submodule(path) if path else self.root
        raise _DataDependent(path, type(owner).__name__, _user_line())


def evaluate(node: fx.Node, root: nn.Module, value_of: Callable[[fx.Node], Any]) -> Any:
    """What a node computes, given the values of the nodes that it reads; its paths are those of `root`.

    An opaque layer, one that needs data to run, is taken to keep the shape of its input.
    """
    args, kwargs = map_aggregate((node.args, node.kwargs), lambda a: value_of(a) if isinstance(a, fx.Node) else a)
    if node.meta.get("opaque"):
        return args[0]
    with torch.no_grad():
        if node.op == "get_attr":
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
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith((*ours, "<"))]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown line"


def _refused(tracer: _Tracer, node: fx.Node, error: Exception) -> ConversionError:
    values = [n.meta["value"] for n in node.all_input_nodes]
    shapes = [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]
    where = str(node.target) if node.op == "call_module" else tracer.scope.module_path
    size = "x".join(map(str, tracer._input_size))
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConversionError(
        f"the network refuses images of {size} at {where or type(tracer.root).__name__!r}"
        f" (inputs {', '.join(map(str, shapes)) or 'none'}): {reason}; give another input_size=(C, H, W)."
    )


def _drop_asserts(graph: fx.Graph) -> None:
    """Assertions about sizes hold for the source's sizes, which are not the top-down network's."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)


def _dropout_as_modules(graph: fx.Graph, root: nn.Module) -> fx.Graph:
    """`F.dropout(x, p, training=self.training)` becomes a layer, so that it follows the mode as the source does.

    Tracing happens in evaluation mode: a flag that is False here follows the mode; one that is True is always on.
    """
    layers = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d}
    for i, node in enumerate(n for n in graph.nodes if n.op == "call_function" and n.target in layers):
        p, training = (node.kwargs.get(k, node.args[at] if len(node.args) > at else d)
                       for k, at, d in (("p", 1, 0.5), ("training", 2, True)))  # fmt: skip
        if training is False:
            path = f"dropout_{i}"
            root.add_module(path, layers[node.target](p))
            node.op, node.target, node.args, node.kwargs = "call_module", path, (node.args[0],), {}
    return graph


def _check_output(captured: Capture) -> None:
    output = captured.output
    value = output.meta["value"] if isinstance(output, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dim() != 2:
        kind = type(output if value is None else value).__name__
        shape = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"({kind})"
        raise ConversionError(f"the output {shape} is no class score: the network must return one tensor (N, classes).")
