"""The network's own way of building a layer: which norm and activation, in which order, with or without bias.

What the compiler adds (entries, transitions, merges, projections) is built in this style (SPEC 2.2, 2.4, 2.5).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from td_compiler.capture.meta import META
from td_compiler.graph.activations import written_activation
from td_compiler.graph.axes import channel_axis, in_order
from td_compiler.graph.norms import written_norm
from td_compiler.graph.notes import Plan, facts, noted, plan
from td_compiler.graph.operators import Kind
from td_compiler.graph.states import TopDown
from td_compiler.graph.units import Layer, TopDownStage, Unit

__all__ = ["Style", "add_chain", "add_layers", "style_of"]


@dataclass(frozen=True)
class Style:
    """How a unit builds its layers.

    Attributes:
        conv: a convolution of the unit.
        norm: the bottom-up node of its norm, or the nodes of a norm that is written out; none if it has none.
        activation: the bottom-up nodes of its activation, several of one that is written out; none if it has none.
        pre_activation: whether norm and activation precede the convolution.
    """

    conv: nn.Conv2d
    norm: tuple[fx.Node, ...]
    activation: tuple[fx.Node, ...]
    pre_activation: bool


def style_of(top_down: TopDown, stage: TopDownStage) -> Style:
    """The style of a stage's first unit that has a convolution; of a stage without body that of the network's first.

    What that unit lacks (an activation behind a linear bottleneck) is taken from the rest of the network.
    """
    everywhere = [unit for native in top_down.bottom_up.stages for unit in native.units]
    styles = (_read(top_down, [unit]) for unit in [*stage.units, *everywhere])
    first = next(style for style in styles if style is not None)
    if first.activation:
        return first
    whole = _read(top_down, everywhere)
    assert whole is not None, "a stage's units are the network's"
    return replace(first, norm=first.norm or whole.norm, activation=whole.activation or _function(top_down, everywhere))


def _read(top_down: TopDown, units: Iterable[Unit]) -> Style | None:
    first: dict[Kind, tuple[fx.Node, ...]] = {}
    for unit in units:
        for node in unit.nodes:
            kind = top_down.bottom_up.kind(node)
            is_plain = kind is not Kind.CONV or isinstance(top_down.bottom_up.layer(node), nn.Conv2d)
            written = written_activation(top_down.bottom_up, unit.nodes, unit.nodes.index(node))
            if written and Kind.ACTIVATION not in first:
                first[Kind.ACTIVATION] = written
            elif kind in {Kind.CONV, Kind.NORM, Kind.ACTIVATION} and is_plain:
                first.setdefault(kind, (node,))
            elif Kind.NORM not in first and (norm := written_norm(unit.nodes, unit.nodes.index(node))):
                first[Kind.NORM] = norm
    if Kind.CONV not in first:
        return None
    order = list(first)
    conv = top_down.bottom_up.layer(first[Kind.CONV][0])
    assert isinstance(conv, nn.Conv2d)
    return Style(conv, first.get(Kind.NORM, ()), first.get(Kind.ACTIVATION, ()), order.index(Kind.CONV) > 0)


def _function(top_down: TopDown, units: Iterable[Unit]) -> tuple[fx.Node, ...]:
    """In a network without an activation of torch's the first step of the user's own that stands in its place.

    That is an autograd function, or a module without parameters around one, behind a norm or a convolution.
    """
    for node in itertools.chain.from_iterable(unit.nodes for unit in units):
        read = [each for each in node.all_input_nodes if facts(each).carries]
        layer = top_down.bottom_up.layer(node)
        is_own = (
            layer is not None and top_down.bottom_up.row(node) is None and not any(True for _ in layer.parameters())
        )
        if is_own and len(read) == 1 and top_down.bottom_up.kind(read[0]) in {Kind.CONV, Kind.NORM}:
            made, given = facts(node).value, facts(read[0]).value
            if isinstance(made, torch.Tensor) and made.shape == given.shape:
                return (node,)
    return ()


def add_layers(
    top_down: TopDown,
    stage: TopDownStage,
    style: Style,
    path: str,
    value: fx.Node,
    kernel_size: int,
    wanted: int,
) -> list[fx.Node]:
    """Insert convolution, norm and activation, in the style's order, at the graph's insertion point.

    The layers get the paths `path.conv`, `path.norm`, `path.act`; the convolution has stride 1, keeps the size of its
    map and is to have `wanted` filters. Returns the new nodes in order.
    """
    like = style.conv
    conv = nn.Conv2d(
        *(1, 1, kernel_size), padding=kernel_size // 2, bias=like.bias is not None, padding_mode=like.padding_mode,
        device=META, dtype=like.weight.dtype,
    )  # fmt: skip
    steps: list[tuple[str, tuple[fx.Node, ...]]] = [("conv", ()), ("norm", style.norm), ("act", style.activation)]
    if style.pre_activation:
        steps = [*steps[1:], steps[0]]
    nodes: list[fx.Node] = []
    axis = channel_axis(value)
    for name, sources in steps:
        if name != "conv" and not sources:
            continue
        wants = 1 if name == "conv" else _axis_of_norm(sources[0], conv) if name == "norm" else axis
        ordered = in_order(stage.graph, value, wants)
        nodes += [ordered] if ordered is not value else []
        value = ordered
        if name == "conv":
            top_down.layers[f"{path}.conv"] = Layer(conv)
            made = [stage.graph.call_module(f"{path}.conv", (value,))]
            noted(made[0], Plan(path, wanted=wanted))
        else:
            made = add_chain(top_down, stage, sources, f"{path}.{name}", value, path)
        plan(made[-1]).axis = wants
        nodes += made
        value = made[-1]
    ordered = in_order(stage.graph, value, axis)
    nodes += [ordered] if ordered is not value else []
    for node in nodes:
        plan(node).unit = path
    return nodes


def _axis_of_norm(source: fx.Node, conv: nn.Conv2d) -> int | None:
    """Which axis of a map has the channels for a norm like a bottom-up one: the last if it reads those of tokens."""
    read = facts(source.all_input_nodes[0])
    is_last = read.axis is not None and read.axis == read.value.dim() - 1
    return 1 + len(conv.kernel_size) if is_last else read.axis


def add_chain(
    top_down: TopDown, stage: TopDownStage, sources: Sequence[fx.Node], path: str, value: fx.Node, unit: str
) -> list[fx.Node]:
    """Insert operations like bottom-up ones: the first reads one map, here `value`, and only the last is read."""
    copies = {next(n for n in sources[0].all_input_nodes if facts(n).carries): value}
    for source in sources:
        copies[source] = add_like(top_down, stage, source, path, copies, unit, home=path)
    return [copies[source] for source in sources]


def add_like(
    top_down: TopDown,
    stage: TopDownStage,
    source: fx.Node,
    path: str,
    copies: Mapping[fx.Node, fx.Node],
    unit: str,
    home: str = "",
) -> fx.Node:
    """Insert a new operation like a bottom-up one, reading the copies of what it reads; a layer gets the given path.

    Parameters outside layers are put into `home`, or, under a name that says where they are from, into the unit.
    """
    target = source.target
    if source.op == "call_module":
        module = top_down.bottom_up.captured.module(source)
        assert module is not None
        top_down.layers[path] = Layer(module)
        target = path
    copies = dict(copies)

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies and facts(node).prologue:
            return next(iter(copies.values()))  # a size is read of it, which the image at this scale has too
        if node not in copies:  # a size, a parameter, the mode
            copies[node] = stage.graph.node_copy(node, copied)
            noted(copies[node], Plan(unit, source=node))
            if node.op == "get_attr" and node.target != "training":
                name = str(node.target).rpartition(".")[2] if home else str(node.target).replace(".", "_")
                copies[node].target = f"{home or unit}.{name if name.isidentifier() else f'_{name}'}"
        return copies[node]

    args, kwargs = fx.node.map_arg((source.args, source.kwargs), copied)
    node = stage.graph.create_node(source.op, target, args, kwargs)
    noted(node, Plan(unit, source=source, opaque=facts(source).opaque))
    return node
