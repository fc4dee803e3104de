"""Another classifier: of pixels for a task of pixels (SPEC 6.5), of other classes, or none."""

from __future__ import annotations

from torch import fx, nn

from td_compiler.capture.meta import META
from td_compiler.errors import ConversionError
from td_compiler.graph.axes import in_order
from td_compiler.graph.notes import Plan, facts, noted, plan, source_of
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import Pass, TopDown, kind_of, layer_of, operator_of
from td_compiler.graph.units import Layer
from td_compiler.network.base import HEAD

__all__ = ["ReplaceHead"]


_KEPT = {Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT}


class ReplaceHead(Pass[TopDown]):
    """Under `num_classes` the layers that score the classes are to have so many outputs; 0: identities stand there.

    Under `task="segmentation"` the head becomes a 1x1 convolution to `num_classes` maps, at the image's resolution.

    What the source's head begins with stays as long as it is a norm, an activation or a dropout on the map: the last
    block of a pre-activation network hands on sums that only the head's norm makes fit to read. The rest, pooling and
    classifier, is left out, and the report says so. An encoder without any head gets the convolution alone.
    """

    def requires(self, top_down: TopDown) -> None:
        assert len(top_down.head_graph.nodes) > 1, "the head is empty"

    def apply(self, top_down: TopDown) -> None:
        num_classes, graph = top_down.options.num_classes, top_down.head_graph
        _read_channels(top_down)
        if top_down.options.task != "segmentation":
            if num_classes is not None:
                _score(top_down, num_classes)
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


def _read_channels(top_down: TopDown) -> None:
    """Say what images of other channels than the source's mean, or that they cannot be."""
    channels, own = top_down.options.in_chans, top_down.bottom_up.input_size[0]
    if channels in (None, own):
        return
    if top_down.prologue_graph is not None:
        raise ConversionError(
            f"in_chans={channels}: what the network does to its image before the first layer is for {own} channels:"
            " leave it out of the network, or bring the images to these."
        )
    top_down.notes.append(f"Images have {channels} channels, the source's {own}: the layers that read them are new.")


def _score(top_down: TopDown, num_classes: int) -> None:
    """Let the layers that make the scores make so many, or none."""
    graph = top_down.head_graph
    classifiers: list[fx.Node] = []
    nodes = list(graph.output_node().all_input_nodes)
    for node in nodes:
        row, layer = operator_of(top_down, node), layer_of(top_down, node)
        if row is not None and row.width is Width.FREE:
            classifiers.append(node)
        elif node.op == "placeholder" or (layer is not None and row is None):
            raise ConversionError(
                f"num_classes={num_classes}: no linear layer or convolution of the head makes the scores: put one"
                " at its end, or leave num_classes out."
            )
        else:
            carrying = (n for n in node.all_input_nodes if n.op == "placeholder" or facts(source_of(n)).carries)
            nodes += [n for n in carrying if n not in nodes]
    for node in classifiers:
        if facts(source_of(node)).width == num_classes:
            continue
        if num_classes:
            plan(node).wanted = num_classes
        elif node.op == "call_module" and top_down.layers[str(node.target)].own:
            top_down.layers[str(node.target)] = Layer(nn.Identity())
            noted(node, Plan(plan(node).unit, plan(node).class_name))
        else:
            raise ConversionError("num_classes=0: the classifier is no layer that could be left out.")
    names = ", ".join(str(node.target) for node in classifiers)
    made = f"scores {num_classes} classes" if num_classes else "is left out: the network returns what it would read"
    top_down.notes.append(f"The classifier ({names}) {made}.")


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
