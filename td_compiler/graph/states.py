"""What the passes share: the states of a conversion, one for each part of the pipeline, and the form of a pass.

A network is read (`Reading`, then `BottomUp`), turned (`TopDown`) and built (`Building`). A state has all that its part
of the pipeline needs when it is made, and passes change what is in it; what a later state has and an earlier one has
not, nobody can ask for too early.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import fx, nn

from td_compiler.capture.captured import Capture
from td_compiler.capture.meta import dtype_of
from td_compiler.graph.initialisation import Initialisation
from td_compiler.graph.names import free_name
from td_compiler.graph.notes import facts, plan
from td_compiler.graph.operators import Kind, Operator, Pair, convolution, lookup
from td_compiler.graph.units import Boundary, Layer, Stage, TopDownStage, Unit
from td_compiler.network.base import HEAD, RESERVED
from td_compiler.options import Options

__all__ = ["BottomUp", "Building", "Pass", "Reading", "TopDown", "kind_of", "layer_of", "operator_of"]


@dataclass(eq=False, kw_only=True)
class Reading:
    """A network that is being read.

    Attributes:
        model: the source network, never changed.
        input_size: (C, H, W) at which the network is read.
        captured: the bottom-up graph.
        image: its node that is the image as the first layer reads it, behind the prologue, if there is one (SPEC 1.0).
        prologue: all nodes that it is computed of, in order, the image itself left out; empty where it is the image.
        notes: sentences for the report.
        done: the names of the passes that have run.
    """

    model: nn.Module
    input_size: tuple[int, int, int]
    captured: Capture
    image: fx.Node
    prologue: list[fx.Node] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    _convolutions: dict[fx.Node, nn.Module | None] = field(default_factory=dict, repr=False)

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the image that the pyramid scales, for the images that the network is read with."""
        channels, height, width = facts(self.image).value.shape[1:]
        return int(channels), int(height), int(width)

    @cached_property
    def parts(self) -> dict[str, nn.Module]:
        """The model's modules by path; a functional dropout became one of the skeleton only."""
        return dict(self.model.named_modules(remove_duplicate=False))

    @cached_property
    def device(self) -> torch.device:
        """Where the model's parameters are; the CPU if it has none."""
        return next((t.device for t in (*self.model.parameters(), *self.model.buffers())), torch.device("cpu"))

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of the model's first floating parameter."""
        return dtype_of(self.model)

    def growth(self, node: fx.Node) -> Pair:
        """The factor (height, width) by which a bottom-up node makes its map larger; a padding's rounds to 1."""
        size = facts(node).size
        before = [known for n in node.all_input_nodes if (known := facts(n).size) is not None]
        if size is None or size == (1, 1) or not before or self.kind(node) is Kind.PAD:
            return 1, 1
        if any(map(self.is_strip, (size, *before))):
            return 1, 1
        if len(before) == 1 and before[0] != size and (undone := self._undone(node, size, before[0])):
            return undone
        before = [each for each in before if each != (1, 1)]
        if not before:
            return 1, 1
        return max(1, min(round(size[0] / b[0]) for b in before)), max(1, min(round(size[1] / b[1]) for b in before))

    def is_strip(self, size: Pair | None) -> bool:
        """Whether a map of a size is one line of numbers, pooled over the rows or columns that the image has."""
        image = facts(self.image).size
        return (
            size is not None
            and image is not None
            and size != (1, 1)
            and any(n == 1 < full for n, full in zip(size, image, strict=True))
        )

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


@dataclass(eq=False, kw_only=True)
class BottomUp(Reading):
    """A bottom-up network, read: its units and stages (SPEC 1).

    Attributes:
        units: its units in order, up to the head.
        stem: the units before the first stage with a body of its own, poolings left out; empty if there is none.
        stem_boundaries: how many of the first boundaries are the stem's.
        stages: one per scale, finest first; `stages[0].scale == (1, 1)`.
        boundaries: one fewer than stages.
        head: the nodes from the first that belongs to classification to the class scores; empty in an encoder.
    """

    units: list[Unit]
    stem: list[Unit]
    stem_boundaries: int
    stages: list[Stage]
    boundaries: list[Boundary]
    head: list[fx.Node]

    @property
    def features(self) -> fx.Node:
        """What the head reads; in an encoder what the network returns."""
        read = self.head[0].all_input_nodes if self.head else [self.captured.output]
        return next(n for n in read if facts(n).carries)


@dataclass(eq=False, kw_only=True)
class TopDown:
    """A top-down network: its graphs, before its layers are made.

    Attributes:
        bottom_up: the network that it is made of.
        options: what was asked for.
        stages: its stages, coarse to fine.
        notes: sentences for the report.
        prologue_graph: what is done to the image before the pyramid, a graph with placeholder `images`; None: nothing.
        head_graph: its head, a graph with placeholder `x`.
        layers: path -> layer.
        done: the names of the passes that have run.
    """

    bottom_up: BottomUp
    options: Options
    stages: list[TopDownStage]
    notes: list[str]
    prologue_graph: fx.Graph | None = None
    head_graph: fx.Graph = field(default_factory=fx.Graph)
    layers: dict[str, Layer] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    @cached_property
    def names(self) -> dict[str, str]:
        """The other names that layers and parameters at the source's top get where the network has theirs itself."""
        nodes = [node for node in self.bottom_up.captured.graph.nodes if node.op in ("call_module", "get_attr")]
        paths = [str(node.target) for node in nodes if node.target != "training"]
        firsts = dict.fromkeys(path.partition(".")[0] for path in paths)
        reserved = {*RESERVED, HEAD} if self.options.task == "segmentation" else set(RESERVED)
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
    def image_channels(self) -> int:
        """How many channels the images have that the pyramid scales: the source's, unless others are asked for."""
        return self.options.in_chans or self.bottom_up.image_size[0]

    @property
    def width(self) -> int:
        """How many class scores or features the network returns, once the widths are known."""
        return plan(self.head_graph.output_node().all_input_nodes[0]).width

    @property
    def output_shape(self) -> torch.Size:
        """What the network puts out for as many images as it is read with, once the widths are known."""
        images = facts(self.bottom_up.captured.output).value.shape[0]
        sides = self.bottom_up.image_size[1:] if self.options.task == "segmentation" else ()
        return torch.Size((images, self.width, *sides))

    def map_size(self, scale: Pair) -> Pair:
        """The (height, width) of the maps at a scale, for the images that the network is read with."""
        _, height, width = self.bottom_up.image_size
        return -(-height // scale[0]), -(-width // scale[1])

    def graphs(self) -> list[fx.Graph]:
        """The network's graphs in running order behind the pyramid, the head last."""
        return [*(stage.graph for stage in self.stages), self.head_graph]


@dataclass(eq=False, kw_only=True)
class Building(TopDown):
    """A top-down network whose layers are made: all its widths are known.

    Attributes:
        modules: path -> module.
        parameters: path -> parameter or buffer that stands outside any layer.
        channels_last: whether its maps are laid out so where it is fast.
        initialisation: how the source draws its first values, and by which laws those of the network are.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    channels_last: bool = False
    initialisation: Initialisation = field(default_factory=Initialisation)

    @cached_property
    def source_paths(self) -> dict[nn.Module, str]:
        """The first path at which a module of the skeleton stands."""
        return {module: path for path, module in reversed(self.bottom_up.captured.modules.items())}


def layer_of(top_down: TopDown, node: fx.Node) -> Layer | None:
    """The layer that a top-down `call_module` node calls."""
    return top_down.layers[str(node.target)] if node.op == "call_module" else None


def operator_of(top_down: TopDown, node: fx.Node) -> Operator | None:
    """The operator table's row for a top-down node."""
    layer = layer_of(top_down, node)
    return lookup(node, layer.prototype if layer else None)


def kind_of(top_down: TopDown, node: fx.Node) -> Kind | None:
    """The kind of a top-down node: that of the bottom-up node that it copies, if it copies one."""
    source = plan(node).source
    if source is not None:
        return top_down.bottom_up.kind(source)
    row = operator_of(top_down, node)
    return row.kind if row else None


State = TypeVar("State", Reading, TopDown, Building, contravariant=True)


class Pass(ABC, Generic[State]):
    """One step of the pipeline: states and checks what it needs, acts, states and checks what it ensures.

    A check that fails is a defect of the compiler, not of the user's network (an `AssertionError`); what a network
    lacks is said by a `ConversionError` in `apply`.
    """

    def __call__(self, state: State) -> None:
        """Check, act, check."""
        self.requires(state)
        self.apply(state)
        self.ensures(state)
        state.done.append(type(self).__name__)

    @abstractmethod
    def requires(self, state: State, /) -> None:
        """Assert what must hold before."""

    @abstractmethod
    def apply(self, state: State, /) -> None:
        """Do it."""

    @abstractmethod
    def ensures(self, state: State, /) -> None:
        """Assert what holds after."""
