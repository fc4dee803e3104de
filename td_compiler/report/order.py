"""What runs in what order in a top-down network, read off its graphs: what a picture of it shows."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx, nn

from td_compiler.graph.notes import plan
from td_compiler.layers.folding import CombinedConv2d
from td_compiler.network.base import TopDownNet
from td_compiler.network.segments import Segment

__all__ = ["Step", "before_merge", "entry_width", "head_steps", "how_merged"]

_NEW = ("entry.", "merge.", "upsample.")  # beside the way of the map so far into the merge


@dataclass(frozen=True)
class Step:
    """A part of a network that runs by itself.

    Attributes:
        what: `1x1 conv`, `first block`, `pool`, `linear`, ...
        width: the filters that it ends with, or the features; 0 where it has none of its own.
        source: whether it is one of the source's units.
    """

    what: str
    width: int = 0
    source: bool = False

    def __str__(self) -> str:
        return f"{self.what}, {self.width}" if self.width else self.what


def before_merge(network: TopDownNet, segment: Segment) -> list[Step]:
    """What the map so far goes through before it meets the image: the stage's first block, a transition, or nothing."""
    if "x" not in segment.inputs:
        return []
    steps: dict[str, Step] = {}
    for node in segment.graph.find_nodes(op="call_module"):
        unit = plan(node).unit
        if unit.startswith("merge."):
            break
        layer = network.get_submodule(str(node.target))
        width = _width(layer)
        if not width or unit.startswith(_NEW):
            continue
        if unit.startswith("transition."):
            steps["transition"] = Step(_kernel(layer), width)
        else:
            steps["block"] = Step("first block", width, source=True)
    return list(steps.values())


def entry_width(network: TopDownNet, segment: Segment) -> int:
    """The filters that a stage's entry ends with; 0 where it has none."""
    nodes = segment.graph.find_nodes(op="call_module")
    layers = (network.get_submodule(str(node.target)) for node in nodes if plan(node).unit.startswith("entry."))
    return [0, *filter(None, map(_width, layers))][-1]


def how_merged(network: TopDownNet, segment: Segment) -> str:
    """`combined`, `add` or `concat`, told by a stage's operations."""
    nodes = [node for node in segment.graph.nodes if plan(node).unit.startswith("merge.")]
    targets = {node.target for node in nodes}
    layers = {type(network.get_submodule(str(node.target))) for node in nodes if node.op == "call_module"}
    adds, stacks = operator.add in targets, torch.cat in targets
    if CombinedConv2d in layers or (adds and stacks):
        return "combined"
    return "add" if adds else "concat"


def head_steps(network: TopDownNet) -> list[Step]:
    """What the head does with the last map: pools it, convolves it, scores classes."""
    steps: list[Step] = []
    for node in network.segments[-1].graph.nodes:
        layer = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Linear):
            steps.append(Step("linear", layer.out_features))
        elif layer is not None and _width(layer):
            steps.append(Step(_kernel(layer), _width(layer)))
        elif _pools(node, layer) and steps[-1:] != [Step("pool")]:
            steps.append(Step("pool"))
    return steps


def _pools(node: fx.Node, layer: nn.Module | None) -> bool:
    name = type(layer).__name__ if layer is not None else getattr(node.target, "__name__", str(node.target))
    return "pool" in name.lower() or name == "mean"


def _width(layer: nn.Module) -> int:
    """The filters of a convolution; 0 of other layers."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 4:
        return 0
    return int(getattr(layer, "out_channels", len(weight)))


def _kernel(layer: nn.Module) -> str:
    high, wide = layer.weight.shape[2:]  # type: ignore[index]
    return f"{high}x{wide} conv"
