"""What the forward of a network does and no layer of torch: a step in training alone, an autograd function."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from td_compiler.graph.pickled import from_pickle, to_pickle

__all__ = ["FunctionStep", "TrainingStep"]


class TrainingStep(nn.Module):
    """Hands on its first input in evaluation; in training what its graph computes of the others.

    Made of `if self.training:` in the forward of a network (SPEC 1.1): the graph's placeholders are that input and the
    other values that the branch reads, its output is the value that takes the first input's place.
    """

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph = graph
        self._function = _compile(graph)

    def forward(self, evaluated: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """The first input itself, or what takes its place in training: a tensor of the same shape."""
        return self._function(self, evaluated, *inputs) if self.training else evaluated

    def __getstate__(self) -> dict[str, Any]:
        """Functions compiled at run time do not pickle: they are made anew from the graph."""
        state = {name: value for name, value in self.__dict__.items() if name != "_function"}
        return {**state, "graph": to_pickle(self.graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.graph = from_pickle(state["graph"])
        self._function = _compile(self.graph)


def _compile(graph: fx.Graph) -> Callable[..., torch.Tensor]:
    code = graph.python_code("self")
    filename = f"<training step {id(graph):x}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    namespace = dict(code.globals)
    exec(compile(code.src, filename, "exec"), namespace)
    function: Callable[..., torch.Tensor] = namespace["forward"]
    return function


class FunctionStep(nn.Module):
    """An autograd function of the user's own, called in a forward: its outputs and gradients are its own."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """What the function returns for its inputs."""
        return self.function.apply(*inputs)
