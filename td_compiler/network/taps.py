"""Places in a network, bottom-up or top-down, where its maps can be seen and hooked: the stages by name.

Explanations such as Grad-CAM (SPEC 6.3) ask for a module at a stage's end. Many networks have none there (an addition,
a functional activation), and top-down networks have none by nature: their stages are graphs. So the network is run as
one graph, on its own layers, with a module of its own at every such place.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from td_compiler.capture.captured import Capture
from td_compiler.capture.meta import dtype_of, empty_images
from td_compiler.capture.skeleton import skeleton
from td_compiler.graph.notes import plan
from td_compiler.graph.units import scale_key
from td_compiler.layers.pyramid import Pyramid
from td_compiler.network.base import TopDownNet
from td_compiler.network.segments import Segment, carried, handed_on
from td_compiler.passes import read

__all__ = ["tapped"]

Size = tuple[int, int, int]


def tapped(network: nn.Module, *, input_size: Size | None = None) -> fx.GraphModule:
    """The same network with a module at the input of its first stage and at the output of every stage.

    Args:
        network: a bottom-up CNN or a top-down network: images (N, C, H, W) to class scores (N, K). It is not changed;
            the result shares its layers and parameters, and has its mode.
        input_size: (C, H, W) at which a bottom-up network is read. Default: as in :func:`td_compiler.reverse`.

    Returns:
        A network that computes the same. Its `taps` is an `nn.ModuleDict` of `nn.Identity` in the order in which the
        network runs: `input`, what the first stage reads (the stem's map; in a network without stem the image, at the
        top-down network's coarsest scale); `stage1`, `stage2`, ..., the map (N, C, h, w) after the stage at that scale;
        and `head`, the last map before the head pools or flattens it, where the head has layers in front of that.

    Raises:
        ConversionError: if the compiler finds no stages in a bottom-up network; the message says why.
    """
    plan = _top_down(network) if isinstance(network, TopDownNet) else _bottom_up(network, input_size)
    for path, module in plan.parts.items():
        if getattr(module, "inplace", False):  # it would overwrite what a hook on the layer before has seen
            plan.parts[path] = copy.copy(module)
            plan.parts[path].inplace = False
    plan.parts["training"] = network.training
    plan.find_head()
    for name, node in plan.places.items():
        _tap(plan.graph, name, node)
    taps = nn.ModuleDict({name: nn.Identity() for name in plan.places})
    result = fx.GraphModule({**plan.parts, **{f"taps.{name}": tap for name, tap in taps.items()}}, plan.graph)
    result.add_module("taps", taps)
    result.__dict__["training"] = network.training  # the containers' mode; layers have their own
    return result


@dataclass
class _Plan:
    """A network as one graph.

    Attributes:
        graph: its operations.
        parts: path -> layer, parameter or buffer, for all that the graph asks for.
        places: tap -> the node whose value is to be seen there.
        input_size: (C, H, W).
    """

    graph: fx.Graph
    parts: dict[str, Any]
    places: dict[str, fx.Node]
    input_size: Size

    def find_head(self) -> None:
        """Add the place `head`: the last map that still has the size of the last stage's."""
        bones = skeleton(fx.GraphModule(self.parts, copy.deepcopy(self.graph)))
        assert isinstance(bones, fx.GraphModule)
        ShapeProp(bones).propagate(empty_images(self.input_size, dtype_of(bones)))
        sizes = {
            node: getattr(twin.meta.get("tensor_meta"), "shape", ())[2:]
            for node, twin in zip(self.graph.nodes, bones.graph.nodes, strict=True)
        }
        *_, last = self.places.values()
        nodes = list(sizes)
        maps = [node for node in nodes[nodes.index(last) :] if sizes[node] == sizes[last]]
        if maps[-1] is not last:
            self.places["head"] = maps[-1]


def _top_down(network: TopDownNet) -> _Plan:
    """The pyramid, every segment and the head in one graph."""
    graph, places = fx.Graph(), {}
    images = graph.placeholder("images")
    if (prologue := network.prologue) is not None:
        images = _append(graph, prologue, {"images": images})[handed_on(prologue.graph)[0]]
    levels = graph.call_module("pyramid", (images,))
    *stages, head = network.segments
    state: dict[str, fx.Node] = {}
    for place, segment in zip(reversed(range(len(stages))), stages, strict=True):
        image = graph.call_function(operator.getitem, (levels, place))
        copies = _append(graph, segment, {**state, "image": image})
        if not state:
            places["input"] = ([image] + [copies[n] for n in segment.graph.nodes if _is_entry(n)])[-1]
        state = carried(tuple(copies[node] for node in handed_on(segment.graph)))
        x = state["x"]
        if x is not places["input"]:  # the coarsest stage may be an entry and nothing else
            places[segment.name] = x
    graph.output(_append(graph, head, state)[handed_on(head.graph)[0]])
    parts = {path: _at(network, path) for path in _targets(graph)}
    if network.prologue is not None:  # which is a part of the graph already
        parts["pyramid"] = Pyramid(network.pyramid.scales, network.pyramid.downsample)
    return _Plan(graph, parts, places, network.report.input_size)


def _append(graph: fx.Graph, segment: Segment, inputs: dict[str, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Copy a segment to the end of a graph; returns every node's copy."""
    copies = {node: inputs[str(node.target)] for node in segment.graph.find_nodes(op="placeholder")}
    graph.graph_copy(segment.graph, copies)
    return copies


def _is_entry(node: fx.Node) -> bool:
    return plan(node).unit.startswith("entry.")


def _bottom_up(network: nn.Module, input_size: Size | None) -> _Plan:
    """The graph as the compiler reads it, on the network's own layers."""
    found = read(network, input_size)
    captured, stages = found.captured, [stage for stage in found.stages if stage.units]
    places = {"input": stages[0].units[0].input}
    places.update({f"stage{scale_key(stage.scale)}": stage.units[-1].output for stage in stages})
    parts = {path: _part(network, captured, path) for path in _targets(captured.graph)}
    return _Plan(captured.graph, parts, places, found.input_size)


def _part(network: nn.Module, captured: Capture, path: str) -> Any:
    """What stands at a path: the network's own, unless the capture put a plain layer in the place of a function."""
    layer = captured.modules.get(path)
    try:
        own = _at(network, path)
    except AttributeError:
        return layer  # without parameters: an activation that was part of a norm, a functional dropout
    if layer is None or type(layer) is type(own):
        return own
    layer = copy.deepcopy(layer)
    for registry in ("_parameters", "_buffers"):
        getattr(layer, registry).update({name: getattr(own, name) for name in getattr(layer, registry)})
    return layer.train(own.training)


def _targets(graph: fx.Graph) -> list[str]:
    """The paths that a graph reads, each once; `training` is the mode, not a path."""
    paths = {str(node.target): None for node in graph.nodes if node.op in {"call_module", "get_attr"}}
    return [path for path in paths if path != "training"]


def _at(root: nn.Module, path: str) -> Any:
    return reduce(getattr, path.split("."), root)


def _tap(graph: fx.Graph, name: str, node: fx.Node) -> None:
    """Let all that reads a node read a copy of its tap: what is changed in place then is not what the tap has shown."""
    with graph.inserting_after(node):
        tap = graph.call_module(f"taps.{name}", (node,))
    with graph.inserting_after(tap):
        onward = graph.call_method("clone", (tap,))
    node.replace_all_uses_with(onward, delete_user_cb=lambda user: user is not tap)
