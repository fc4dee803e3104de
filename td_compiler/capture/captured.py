"""A network as a graph whose nodes know their values."""

from __future__ import annotations

import torch
from torch import fx, nn

__all__ = ["Capture"]


class Capture:
    """A network as a graph.

    Attributes:
        graph: its operations; `facts(node).value` is what each computed, `facts(node).modules` in which
            modules, `facts(node).place` on which line.
        modules: the skeleton's modules by path, parameters on the meta device.
        constants: tensors that the network makes or keeps beside its parameters and buffers, by path.
        image: the placeholder of the images (N, C, H, W).
        output: the node of what the network returns: class scores (N, K), an encoder's map (N, C, h, w).
        notes: sentences for the report on what could not be kept.
        refusals: what the network does that no graph can say, as sentences.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph = graph
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.constants: dict[str, torch.Tensor] = {}
        self.image = next(node for node in graph.nodes if node.op == "placeholder")
        self.notes: list[str] = []
        self.refusals: list[str] = []

    @property
    def output(self) -> fx.Node:
        """What the graph returns."""
        return self.graph.output_node().args[0]  # type: ignore[return-value]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The layer that a `call_module` node calls, else None."""
        return self.modules[str(node.target)] if node.op == "call_module" else None
