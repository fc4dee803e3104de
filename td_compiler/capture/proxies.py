"""What stands for tensors, sizes and modes while a network is traced: proxies that know their values."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from td_compiler.capture.tracing import ValueTracer

__all__ = ["Mode", "ValueProxy"]


class Mode:
    """Stands for `self.training` while a module is traced.

    Passed to a function it becomes `self.training` in the graph; asked for its truth it answers for evaluation, or
    asks for the module to stay a leaf where that loses nothing.
    """

    def __init__(self, tracer: ValueTracer, path: str) -> None:
        self._tracer = tracer
        self._path = path

    def __bool__(self) -> bool:
        self._tracer.ask_mode(self._path)
        return False


class ValueProxy(fx.Proxy):
    """A proxy that answers questions about sizes with the numbers of this trace."""

    def __getattr__(self, name: str) -> Any:
        return Attribute(self, name)

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


class Attribute(ValueProxy):
    """`x.name`: an attribute read if used as a value, a method call if called."""

    def __init__(self, root: ValueProxy, name: str) -> None:
        self.root, self.attr, self.tracer = root, name, root.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)
