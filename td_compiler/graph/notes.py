"""What is known of a node: the `facts` of a bottom-up one, the `plan` of a top-down one.

A node's record stands in `node.meta["note"]`, and nothing else of the compiler's stands in `meta`. Torch copies `meta`
with a node but not what is in it, so whoever copies a node gives the copy a record of its own: a new plan, or `copied`
facts. A field without a default is not there before the pass that finds it: to read it earlier, or of a node of which
there is nothing to find, is an `AttributeError` and no wrong number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from torch import fx

__all__ = [
    "Facts",
    "Gate",
    "Pair",
    "Plan",
    "axis_of",
    "computed",
    "copied",
    "facts",
    "is_opaque",
    "is_top_down",
    "noted",
    "origin_of",
    "plan",
    "sides_of",
    "size_of",
    "source_of",
    "value_of",
]

Pair = tuple[int, int]

_KEY: Final = "note"
_Note = TypeVar("_Note", "Facts", "Plan")


class Gate(NamedTuple):
    """What a pooling leaves of its map for a gate: one number of every channel, or one line of them.

    Attributes:
        pooling: the function of torch that leaves as much of a map of any size; None where there is none.
        sides: (height, width) of what it leaves, None along an axis that is not pooled.
    """

    pooling: Callable[..., Any] | None
    sides: tuple[int | None, int | None]


@dataclass(slots=True, eq=False, repr=False)
class Facts:
    """What is known of a bottom-up node.

    Attributes:
        value: what it computed: a tensor on the meta device, several in a tuple, a number.
        modules: the modules that it runs in, (path, class), outermost first; last the layer that it calls.
        place: the user's line, (file, number); None where no call of the user's made it.
        opaque: whether it is a layer that needs data to run, which is taken to keep the shape of its input.
        prologue: whether it carries the image's data no further than to the first layer (SPEC 1.0).
        axis: where the channels are; None where a reshape has folded or split them, and where there are none.
        width: how many channels; of a folded tensor as many as went in. Only what carries the image's data has one.
        size: (height, width) of a map; None of anything else.
        seen: (height, width) of the last map on the way; None of what carries no image data.
        factor: (height, width) by which it makes its map smaller, where the operator table does not say.
        stride: (height, width) by which its unit has it make its map smaller: (1, 1) where the unit makes that good.
        scale: (height, width) by which the image is larger than its map. Only nodes of units have stride and scale.
        gate: what a pooling leaves of its map for a gate.
        entrance: of what makes a map larger, the first of the strides before it that it makes good.
        padding_mode: how a convolution that is a function pads, which a padding in front of it says.
        stays: whether it is to be in the top-down network as it is, as part of steps that move the pixels of a map, or
            make it smaller and as large again.
        pads_for: of a padding that no convolution can do itself, those that it pads for.
        padded_by: of a convolution, such a padding.
    """

    value: Any = None
    modules: tuple[tuple[str, type], ...] = ()
    place: tuple[str, int] | None = None
    opaque: bool = False
    prologue: bool = False
    axis: int | None = None
    width: int = field(init=False)
    size: Pair | None = None
    seen: Pair | None = None
    factor: Pair | None = None
    stride: Pair = field(init=False)
    scale: Pair = field(init=False)
    gate: Gate | None = None
    entrance: fx.Node | None = None
    padding_mode: str = "zeros"
    stays: bool = False
    pads_for: tuple[fx.Node, ...] = ()
    padded_by: fx.Node | None = None

    @property
    def carries(self) -> bool:
        """Whether it carries the image's data, behind the prologue: then it has a width."""
        return hasattr(self, "width")

    @property
    def in_unit(self) -> bool:
        """Whether it is a node of a unit, or the image that the first one reads: then it has a scale."""
        return hasattr(self, "scale")


@dataclass(slots=True, eq=False, repr=False)
class Plan:
    """What is known of a top-down node. A finished network's nodes know `unit`, `class_name`, `homes` and `growth`.

    Attributes:
        unit: the path of the module that it is to be a part of; "" of none.
        class_name: that module's class in the source; "" of a new one.
        source: the bottom-up node that it copies, or is like; None of what the compiler puts in.
        stride: (height, width) by which the unit made its map smaller at this node.
        opaque: as of the source.
        axis: where the channels are, if neither the source nor what it reads says so.
        wanted: the filters that it is to have, of a layer that chooses its width; else 0.
        total: the width that it is to have, of an entry's last node; else 0.
        growth: (height, width) by which it makes its map larger.
        kernel_size: (height, width) of a convolution that is a function, and of its kernel, where it is another one.
        width: its channels, once the widths are known. Only what carries the image's data has one.
        widths: of a parameter, axis -> channels.
        bounds: of a slice of channels, (start, stop).
        pieces: of a split, the channels of each piece.
        pads: of a padding with channels, how many in front and behind.
        picks: of a parameter that holds numbers of channels, among how many these are in the source.
        homes: of a finished network, (path, class name) of the modules inside the unit that hold it, outermost first.
    """

    unit: str = ""
    class_name: str = ""
    source: fx.Node | None = None
    stride: Pair = (1, 1)
    opaque: bool = False
    axis: int | None = None
    wanted: int = 0
    total: int = 0
    growth: Pair | None = None
    kernel_size: tuple[int, ...] | None = None
    width: int = field(init=False)
    widths: dict[int, int] = field(default_factory=dict)
    bounds: tuple[int, int] | None = None
    pieces: list[int] | None = None
    pads: list[int] | None = None
    picks: int | None = None
    homes: tuple[tuple[str, str], ...] = ()

    @property
    def carries(self) -> bool:
        """Whether it carries the image's data, once the widths are known: then it has a width."""
        return hasattr(self, "width")


def facts(node: fx.Node) -> Facts:
    """What is known of a bottom-up node; empty where nothing is yet."""
    note = node.meta.get(_KEY)
    if note.__class__ is Facts:
        return note
    assert note is None, f"{node} is no bottom-up node"
    return noted(node, Facts())


def plan(node: fx.Node) -> Plan:
    """What is known of a top-down node; empty where nothing is yet."""
    note = node.meta.get(_KEY)
    if note.__class__ is Plan:
        return note
    assert note is None, f"{node} is no top-down node"
    return noted(node, Plan())


def noted(node: fx.Node, note: _Note) -> _Note:
    """Give a node a record in place of all that its `meta` holds."""
    node.meta = {_KEY: note}
    return note


def copied(node: fx.Node) -> dict[str, Any]:
    """The `meta` of a copy of a node: a record of its own, with the same in it."""
    note = node.meta.get(_KEY)
    return {} if note is None else {_KEY: copy.copy(note)}


def source_of(node: fx.Node) -> fx.Node:
    """The bottom-up node that a top-down one copies; only of those that copy one."""
    source = plan(node).source
    assert source is not None, f"{node} copies no node of the source"
    return source


def origin_of(node: fx.Node) -> fx.Node:
    """The bottom-up node that a node is or copies; a top-down node that copies none itself."""
    note = node.meta.get(_KEY)
    return note.source or node if isinstance(note, Plan) else node


def value_of(node: fx.Node) -> Any:
    """What the bottom-up node that a node is or copies computed; None of a top-down node that copies none."""
    return computed(origin_of(node))


def computed(node: fx.Node) -> Any:
    """What a bottom-up node computed; None of a top-down one."""
    note = node.meta.get(_KEY)
    return note.value if isinstance(note, Facts) else None


def size_of(node: fx.Node) -> Pair | None:
    """(height, width) of a bottom-up node's map; None of other values, and of top-down nodes."""
    note = node.meta.get(_KEY)
    return note.size if isinstance(note, Facts) else None


def is_top_down(node: fx.Node) -> bool:
    """Whether a node has a plan."""
    return isinstance(node.meta.get(_KEY), Plan)


def sides_of(node: fx.Node) -> Pair:
    """(height, width) of a bottom-up node's map; only of maps."""
    size = facts(node).size
    assert size is not None, f"{node} carries no map"
    return size


def axis_of(node: fx.Node) -> int:
    """Where the channels of a bottom-up node are; only where they are on an axis of their own."""
    axis = facts(node).axis
    assert axis is not None, f"the channels of {node} are on no axis of their own"
    return axis


def is_opaque(node: fx.Node) -> bool:
    """Whether a node of either network is a layer that needs data to run."""
    note = node.meta.get(_KEY)
    return note is not None and note.opaque
