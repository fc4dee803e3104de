"""For a task of pixels, put a classifier of pixels in the place of the source's classifier of images (SPEC 6.5)."""

from __future__ import annotations

from torch import fx, nn

from td_compiler.capture.meta import META
from td_compiler.graph.axes import in_order
from td_compiler.graph.notes import Plan, facts, noted, plan
from td_compiler.graph.operators import Kind
from td_compiler.graph.states import Pass, TopDown, kind_of, layer_of
from td_compiler.graph.units import Layer
from td_compiler.network.base import HEAD

__all__ = ["ReplaceHead"]


_KEPT = {Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT}


class ReplaceHead(Pass[TopDown]):
    """Under `task="segmentation"` the head becomes a 1x1 convolution to `num_classes` maps, at the image's resolution.

    What the source's head begins with stays as long as it is a norm, an activation or a dropout on the map: the last
    block of a pre-activation network hands on sums that only the head's norm makes fit to read. The rest, pooling and
    classifier, is left out, and the report says so. An encoder without any head gets the convolution alone.
    """

    def requires(self, top_down: TopDown) -> None:
        assert len(top_down.head_graph.nodes) > 1, "the head is empty"

    def apply(self, top_down: TopDown) -> None:
        num_classes, graph = top_down.options.num_classes, top_down.head_graph
        if top_down.options.task != "segmentation":
            return
        assert num_classes is not None
        output = graph.output_node()
        with graph.inserting_before(output):
            features = in_order(graph, _features(top_down, graph), 1)
            scores = graph.call_module(HEAD, (features,))
        noted(scores, Plan(wanted=num_classes))
        top_down.layers[HEAD] = Layer(nn.Conv2d(1, 1, 1, device=META, dtype=top_down.bottom_up.dtype))
        output.args = (scores,)
        dropped = _erase_unused(top_down, graph)
        instead = f", in place of the source's classifier ({', '.join(dropped)})" if dropped else ""
        top_down.notes.append(f"{HEAD}, a 1x1 convolution, scores {num_classes} classes for every pixel{instead}.")

    def ensures(self, top_down: TopDown) -> None:
        if top_down.options.task == "segmentation":
            assert top_down.layers[HEAD].source == "", "the classifier of pixels is none of the source's layers"


def _features(top_down: TopDown, graph: fx.Graph) -> fx.Node:
    """The last value of the head that is still a map of features."""
    value = next(node for node in graph.nodes if node.op == "placeholder")
    while len(value.users) == 1:
        following = next(iter(value.users))
        source = plan(following).source
        if source is None or facts(source).size is None or kind_of(top_down, following) not in _KEPT:
            break
        value = following
    return value


def _erase_unused(top_down: TopDown, graph: fx.Graph) -> list[str]:
    """Erase what leads nowhere; returns the paths of the layers among it that have parameters, in order."""
    erased: list[str] = []
    for node in reversed(graph.nodes):
        if node.op in {"placeholder", "output"} or node.users:
            continue
        layer = layer_of(top_down, node)
        if layer is not None and any(True for _ in layer.prototype.parameters()):
            erased.insert(0, str(node.target))
        graph.erase_node(node)
    return erased
