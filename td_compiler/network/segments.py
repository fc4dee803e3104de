"""The graphs of a top-down network, stage by stage: what the passes make, and what its text is written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from td_compiler.graph.pickled import from_pickle, to_pickle

__all__ = ["Segment", "carried", "handed_on"]


@dataclass
class Segment:
    """One step of a top-down network: the layers of one scale, or the head.

    Attributes:
        name: `stage16` for the stage at scale 16, `head` for the head, `prologue` for what precedes the pyramid.
        scale: the factor by which this stage's maps are smaller than the image; 1 for the head.
        graph: placeholders `x` (the map so far; absent in the first stage), `older` (the map before it, only where
            cells read two) and `image` (the pyramid's level at this scale; absent in the head), or, in a prologue,
            `images`. Its output is the stage's map, or that and the one before it, where the next stage reads two.
            Every `call_module` and `get_attr` target is a path in the network. The `unit` of a node's plan is the path
            of the unit that it belongs to (`layer3.0`, `entry.16`, `merge.16`), or "" where a unit has no path.
        inputs: the graph's placeholders by name: some of `x`, `older` and `image`, in this order.
    """

    name: str
    scale: int | tuple[int, int]
    graph: fx.Graph
    inputs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = tuple(str(node.target) for node in self.graph.find_nodes(op="placeholder"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "graph": to_pickle(self.graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, graph=from_pickle(state["graph"]))


def handed_on(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The maps that a segment's graph puts out, newest first: one, or two where the next stage reads two."""
    made: Any = graph.output_node().args[0]
    return tuple(made) if isinstance(made, (tuple, list)) else (made,)


def carried(made: Any) -> dict[str, Any]:
    """What a segment put out, one map or two, under the names under which the next one reads it."""
    return dict(zip(("x", "older"), made if isinstance(made, tuple) else (made,), strict=False))
