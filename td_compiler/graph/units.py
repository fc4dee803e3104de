"""The vocabulary of a conversion: units and stages of the bottom-up network, stages of the top-down one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Literal

from torch import fx, nn

from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Pair

__all__ = ["Boundary", "Layer", "Projection", "Stage", "TopDownStage", "Unit", "UnitKind", "scale_key"]


class UnitKind(Enum):
    """What a unit is to the stages."""

    CONV = auto()  # a convolution with its norm and activation
    BLOCK = auto()  # parallel paths that join: a residual block, an inception module, a dense block
    POOL = auto()  # a pooling that makes the map smaller
    OTHER = auto()  # dropout, a norm of its own, ...


@dataclass(eq=False)
class Unit:
    """The part of the graph between two cut points: one tensor, or two between cells (SPEC, 'Words', 2.13).

    Attributes:
        nodes: its operations in order; the last one is its output.
        inputs: what it reads, the state before it, newest first: a node, or two where cells read two outputs.
        state: what the units after it read of what is there by then: its output, and the older tensor if there is one.
        kind: what it is to the stages.
        stride: (height, width) factor by which its output is smaller than its newest input.
        path: the module that is exactly this unit, or "" if there is none.
        class_name: that module's class.
    """

    nodes: list[fx.Node]
    inputs: tuple[fx.Node, ...]
    kind: UnitKind
    state: tuple[fx.Node, ...] = ()
    stride: Pair = (1, 1)
    path: str = ""
    class_name: str = ""

    @property
    def input(self) -> fx.Node:
        """The newest tensor that the unit reads: its scale and width are those that the unit starts from."""
        return self.inputs[0]

    @property
    def output(self) -> fx.Node:
        """The node whose value leaves the unit."""
        return self.nodes[-1]

    @property
    def width(self) -> int:
        """Channels of the unit's output in the bottom-up network."""
        return facts(self.output).width


@dataclass(eq=False)
class Stage:
    """The maximal run of units at one scale (SPEC, 'Words'); `units` may be empty, as at the scale of a stem."""

    scale: Pair
    units: list[Unit] = field(default_factory=list)

    @property
    def width(self) -> int:
        """The width of the first convolution of a plain stage, the block width of a residual one (SPEC 2.5)."""
        return self.units[0].width


@dataclass(eq=False)
class Boundary:
    """Where the bottom-up network goes from one scale to the next.

    Attributes:
        factor: (height, width) by which the map shrinks here.
        strided: whether a unit's own stride does it (else a pooling of its own).
        between: units that stand between a pooling and the next stage, such as dropout.
    """

    factor: Pair
    strided: bool
    between: list[Unit] = field(default_factory=list)


@dataclass(eq=False)
class Layer:
    """A layer of the top-down network before its widths are known.

    Attributes:
        prototype: the source's layer that it is modelled on (parameters on the meta device).
        source: the path of the source's layer whose values it takes where their shapes fit; "" for none.
        own: whether it *is* that layer, at the path that it has in the source or, where the network itself has that
            name, under another; else it is a new one.
        changes: attributes that differ from the prototype's, e.g. `stride`.
    """

    prototype: nn.Module
    source: str = ""
    own: bool = False
    changes: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """The attribute `name` as this layer will have it."""
        return self.changes.get(name, getattr(self.prototype, name))


@dataclass(eq=False)
class Projection:
    """A shortcut's projection in a top-down stage that is there only because shapes change.

    Attributes:
        unit: the block that it belongs to.
        nodes: its operations, in order.
        join: the addition that it leads to.
        of_input: which of the block's inputs the shortcut that it stands for is; None: it is what the projection reads.
    """

    unit: Unit
    nodes: list[fx.Node]
    join: fx.Node
    of_input: int | None = 0


@dataclass(eq=False)
class TopDownStage:
    """One stage of the top-down network under construction.

    Attributes:
        scale: how much smaller than the image its maps are.
        transition: how the map arrives: not at all (the first stage), by a plain transition (1x1 convolution,
            upsampling), or through the stage's own first block.
        units: the units of its body, in bottom-up order.
        native: the bottom-up stage of this scale: the kernel sizes come from there.
        between: units that follow the merge, such as dropout.
        width: filters of the merge and the entry (C of SPEC 2.5).
        graph: its operations; `x`, `older` and `image` are its placeholders. `x` is None in the first stage.
        older: the output before `x`, where the first unit reads two; None elsewhere.
        scales: placeholder of a map -> its scale.
        spans: unit -> its nodes in this graph.
        copies: unit -> bottom-up node -> its copy here.
        inputs: unit -> the nodes that it reads, in the order of its own inputs.
        projections: the projections that fall away where the width does not change.
        arrival: the grown map, where the merge will stand; None in the first stage.
        adapted: the last node of the 1x1 convolution before a plain transition's upsampling.
        entry: the lifted image; None where the body reads the image itself.
    """

    scale: Pair
    transition: Literal["none", "plain", "block"]
    units: list[Unit]
    native: Stage
    between: list[Unit] = field(default_factory=list)
    width: int = 0
    graph: fx.Graph = field(default_factory=fx.Graph)
    x: fx.Node | None = None
    older: fx.Node | None = None
    scales: dict[fx.Node, Pair] = field(default_factory=dict)
    image: fx.Node | None = None
    spans: dict[Unit, list[fx.Node]] = field(default_factory=dict)
    copies: dict[Unit, dict[fx.Node, fx.Node]] = field(default_factory=dict)
    inputs: dict[Unit, tuple[fx.Node, ...]] = field(default_factory=dict)
    projections: list[Projection] = field(default_factory=list)
    arrival: fx.Node | None = None
    adapted: fx.Node | None = None
    entry: fx.Node | None = None

    def redirect(self, old: fx.Node, new: fx.Node, keep: Collection[fx.Node] = ()) -> None:
        """Let all that reads `old` read `new`, but for the nodes in `keep`."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in keep)
        for unit, nodes in self.inputs.items():
            self.inputs[unit] = tuple(new if node is old else node for node in nodes)

    @property
    def arriving(self) -> tuple[fx.Node, ...]:
        """The maps of the stages before, newest first; none in the first stage."""
        return tuple(node for node in (self.x, self.older) if node is not None)

    @property
    def key(self) -> str:
        """The scale as a name: "16", or "4x2" where height and width differ."""
        return scale_key(self.scale)


def scale_key(scale: Pair) -> str:
    """A scale as a name: "16", or "4x2" where height and width differ."""
    height, width = scale
    return str(height) if height == width else f"{height}x{width}"
