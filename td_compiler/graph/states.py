"""What the passes share: the state of one conversion, and the form of a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import fx, nn

from td_compiler.capture.captured import Capture
from td_compiler.graph.names import free_name
from td_compiler.graph.notes import facts, plan
from td_compiler.graph.operators import Kind, Operator, Pair, convolution, lookup
from td_compiler.graph.units import Layer, StageGraph, TopDownStage, Unit
from td_compiler.network.base import HEAD, RESERVED, TopDownNet
from td_compiler.options import Options

__all__ = ["Conversion", "Pass", "kind_of", "layer_of", "operator_of"]


@dataclass(eq=False)
class Conversion:
    """The state of one conversion; every pass fills in or changes a part of it.

    Attributes:
        model: the source network, never changed.
        options: what was asked for.
        input_size: (C, H, W) at which the network is read.
        captured: the bottom-up graph.
        image: its node that is the image as the first layer reads it, behind the prologue (SPEC 1.0).
        prologue: all nodes that it is computed of, in order, the image itself left out; empty where it is the image.
        units: its units in order, up to the head.
        head: the nodes of the head, found by reading from the first global pooling or flatten on.
        bottom_up: the stages found.
        stages: the top-down stages, coarse to fine.
        prologue_graph: what is done to the image before the pyramid, a graph with placeholder `images`, if anything is.
        head_graph: the top-down network's head, a graph with placeholder `x`.
        layers: path -> layer of the top-down network.
        modules: path -> module, once the widths are known.
        parameters: path -> parameter or buffer that stands outside any layer.
        result: the finished network.
        features: how many features the network returns, once the widths are known, if it has no classifier.
        notes: sentences for the report.
        done: the names of the passes that have run.
    """

    model: nn.Module
    options: Options
    input_size: tuple[int, int, int]
    captured: Capture
    image: fx.Node | None = None
    prologue: list[fx.Node] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    head: list[fx.Node] = field(default_factory=list)
    bottom_up: StageGraph | None = None
    stages: list[TopDownStage] = field(default_factory=list)
    prologue_graph: fx.Graph | None = None
    head_graph: fx.Graph | None = None
    layers: dict[str, Layer] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    result: TopDownNet | None = None
    features: int | None = None
    notes: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    _convolutions: dict[fx.Node, nn.Module | None] = field(default_factory=dict, repr=False)

    @cached_property
    def device(self) -> torch.device:
        """Where the model's parameters are; the CPU if it has none."""
        return next((t.device for t in (*self.model.parameters(), *self.model.buffers())), torch.device("cpu"))

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of the model's first floating parameter."""
        floating = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @cached_property
    def names(self) -> dict[str, str]:
        """The other names that layers and parameters at the source's top get where the network has theirs itself."""
        nodes = [node for node in self.captured.graph.nodes if node.op in ("call_module", "get_attr")]
        paths = [str(node.target) for node in nodes if node.target != "training"]
        firsts = dict.fromkeys(path.partition(".")[0] for path in paths)
        reserved = {*RESERVED, HEAD} if self.options.task == "segmentation" else set(RESERVED)
        if "features" not in paths:
            reserved.discard("features")  # a module that has room for layers
        names: dict[str, str] = {}
        for name in firsts:
            if name in reserved:
                names[name] = free_name(f"{name}_", {*reserved, *firsts, *names.values()})
        return names

    def own_path(self, path: str) -> str:
        """The path in the top-down network of what has a path in the source."""
        first, dot, rest = path.partition(".")
        return f"{self.names.get(first, first)}{dot}{rest}"

    @property
    def found(self) -> StageGraph:
        """The stages found; only after the pass `FindStages`."""
        assert self.bottom_up is not None, "FindStages has not run"
        return self.bottom_up

    @property
    def prepared(self) -> fx.Node:
        """The image as the first layer reads it; only after the pass `FindPrologue`."""
        assert self.image is not None, "FindPrologue has not run"
        return self.image

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the image that the pyramid scales, for the images that the network is read with."""
        channels, height, width = facts(self.prepared).value.shape[1:]
        return int(channels), int(height), int(width)

    @property
    def output_shape(self) -> torch.Size:
        """What the top-down network puts out for as many images as the source was traced with."""
        given: torch.Size = facts(self.captured.output).value.shape
        if self.options.task == "segmentation":
            return torch.Size((given[0], self.options.num_classes or 0, *self.image_size[1:]))
        return torch.Size((given[0], self.features)) if self.features is not None else given

    def growth(self, node: fx.Node) -> Pair:
        """The factor (height, width) by which a bottom-up node makes its map larger; a padding's rounds to 1."""
        size = facts(node).size
        before = [known for n in node.all_input_nodes if (known := facts(n).size) is not None]
        if size is None or size == (1, 1) or not before or self.kind(node) is Kind.PAD:
            return 1, 1
        if len(before) == 1 and before[0] != size and (undone := self._undone(node, size, before[0])):
            return undone
        before = [each for each in before if each != (1, 1)]
        if not before:
            return 1, 1
        return max(1, min(round(size[0] / b[0]) for b in before)), max(1, min(round(size[1] / b[1]) for b in before))

    def _undone(self, node: fx.Node, size: Pair, before: Pair) -> Pair | None:
        """The stride on the way to a node that it makes good, whatever its rounding left: 14 to 3 and back is 4."""
        while len(inputs := [n for n in node.all_input_nodes if facts(n).size is not None]) == 1:
            node = inputs[0]
            if facts(node).size != before:
                return None
            if self.kind(node) in {Kind.CONV, Kind.POOL} and (stride := self.stride(node)) != (1, 1):
                fits = all(n // s <= b <= -(-n // s) for n, s, b in zip(size, stride, before, strict=True))
                return stride if fits else None
        return None

    def map_size(self, scale: Pair) -> Pair:
        """The (height, width) of the maps at a scale, for the images that the network is read with."""
        return -(-self.image_size[1] // scale[0]), -(-self.image_size[2] // scale[1])

    def graphs(self) -> list[fx.Graph]:
        """The top-down network's graphs in running order behind the pyramid, the head last."""
        assert self.head_graph is not None, "ReverseStages has not run"
        return [*(stage.graph for stage in self.stages), self.head_graph]

    def row(self, node: fx.Node) -> Operator | None:
        """The operator table's row for a bottom-up node, None if it has none."""
        return lookup(node, self.captured.module(node))

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The layer that a bottom-up node calls; of a convolution that is a function a layer like it, weightless."""
        if node.op != "call_function" or self.kind(node) is not Kind.CONV:
            return self.captured.module(node)
        if node not in self._convolutions:
            self._convolutions[node] = convolution(node)
        return self._convolutions[node]

    def kind(self, node: fx.Node) -> Kind | None:
        """The kind of a bottom-up node; what shrinks a map without a row in the table is a pooling."""
        if facts(node).factor is not None:
            return Kind.POOL
        row = self.row(node)
        return row.kind if row else None

    def stride(self, node: fx.Node) -> Pair:
        """The factor (height, width) by which a bottom-up node makes its map smaller."""
        if (factor := facts(node).factor) is not None:
            return factor
        row = self.row(node)
        return row.stride(node, self.captured.module(node)) if row else (1, 1)


def layer_of(conversion: Conversion, node: fx.Node) -> Layer | None:
    """The layer that a top-down `call_module` node calls."""
    return conversion.layers[str(node.target)] if node.op == "call_module" else None


def operator_of(conversion: Conversion, node: fx.Node) -> Operator | None:
    """The operator table's row for a top-down node."""
    layer = layer_of(conversion, node)
    return lookup(node, layer.prototype if layer else None)


def kind_of(conversion: Conversion, node: fx.Node) -> Kind | None:
    """The kind of a top-down node: that of the bottom-up node that it copies, if it copies one."""
    source = plan(node).source
    if source is not None:
        return conversion.kind(source)
    row = operator_of(conversion, node)
    return row.kind if row else None


class Pass(ABC):
    """One step of the pipeline: states and checks what it needs, acts, states and checks what it ensures.

    A check that fails is a defect of the compiler, not of the user's network (an `AssertionError`); what a network
    lacks is said by a `ConversionError` in `apply`.
    """

    def __call__(self, conversion: Conversion) -> None:
        """Check, act, check."""
        self.requires(conversion)
        self.apply(conversion)
        self.ensures(conversion)
        conversion.done.append(type(self).__name__)

    @abstractmethod
    def requires(self, conversion: Conversion) -> None:
        """Assert what must hold before."""

    @abstractmethod
    def apply(self, conversion: Conversion) -> None:
        """Do it."""

    @abstractmethod
    def ensures(self, conversion: Conversion) -> None:
        """Assert what holds after."""
