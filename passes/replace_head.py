"""For a task of pixels, put a classifier of pixels in the place of the source's classifier of images (SPEC 6.5)."""

from __future__ import annotations

from torch import fx, nn

from td_compiler.graph.axes import in_order
from td_compiler.graph.notes import Plan, facts, noted, plan
from td_compiler.graph.operators import Kind
from td_compiler.graph.states import Conversion, Pass, kind_of, layer_of
from td_compiler.graph.units import Layer
from td_compiler.network.base import HEAD

__all__ = ["ReplaceHead"]


_KEPT = {Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT}


class ReplaceHead(Pass):
    """Under `task="segmentation"` the head becomes a 1x1 convolution to `num_classes` maps, at the image's resolution.

    What the source's head begins with stays as long as it is a norm, an activation or a dropout on the map: the last
    block of a pre-activation network hands on sums that only the head's norm makes fit to read. The rest, pooling and
    classifier, is left out, and the report says so. An encoder without any head gets the convolution alone.
    """

    def requires(self, conversion: Conversion) -> None:
        assert conversion.head_graph is not None, "ReverseStages has not run"

    def apply(self, conversion: Conversion) -> None:
        num_classes, graph = conversion.options.num_classes, conversion.head_graph
        if conversion.options.task != "segmentation":
            return
        assert graph is not None and num_classes is not None
        output = graph.output_node()
        with graph.inserting_before(output):
            features = in_order(graph, _features(conversion, graph), 1)
            scores = graph.call_module(HEAD, (features,))
        noted(scores, Plan(wanted=num_classes))
        conversion.layers[HEAD] = Layer(nn.Conv2d(1, 1, 1, device="meta", dtype=conversion.dtype))
        output.args = (scores,)
        dropped = _erase_unused(conversion, graph)
        instead = f", in place of the source's classifier ({', '.join(dropped)})" if dropped else ""
        conversion.notes.append(f"{HEAD}, a 1x1 convolution, scores {num_classes} classes for every pixel{instead}.")

    def ensures(self, conversion: Conversion) -> None:
        if conversion.options.task == "segmentation":
            assert conversion.layers[HEAD].source == "", "the classifier of pixels is none of the source's layers"


def _features(conversion: Conversion, graph: fx.Graph) -> fx.Node:
    """The last value of the head that is still a map of features."""
    value = next(node for node in graph.nodes if node.op == "placeholder")
    while len(value.users) == 1:
        following = next(iter(value.users))
        source = plan(following).source
        if source is None or facts(source).size is None or kind_of(conversion, following) not in _KEPT:
            break
        value = following
    return value


def _erase_unused(conversion: Conversion, graph: fx.Graph) -> list[str]:
    """Erase what leads nowhere; returns the paths of the layers among it that have parameters, in order."""
    erased: list[str] = []
    for node in reversed(graph.nodes):
        if node.op in {"placeholder", "output"} or node.users:
            continue
        layer = layer_of(conversion, node)
        if layer is not None and any(True for _ in layer.prototype.parameters()):
            erased.insert(0, str(node.target))
        graph.erase_node(node)
    return erased
