"""Find what a network does to the image before its first layer (SPEC 1.0)."""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind, Width, layer_row
from td_compiler.graph.states import Pass, Reading
from td_compiler.graph.walks import ancestors
from td_compiler.passes.nodes import tensors

__all__ = ["FindPrologue", "cut_pieces"]

_LAYERS = {Kind.CONV, Kind.LINEAR, Kind.POOL, Kind.ATTENTION}


class FindPrologue(Pass[Reading]):
    """Finds `reading.image`, as the first convolution, pooling or block reads it, and `reading.prologue`.

    It is the last value before them that all paths run through and that is an image: (N, C, H, W), no smaller than what
    the network is given. What leads to it is the prologue and no part of any unit; where nothing does, it is the
    placeholder. A padding right before the first layer is that layer's own. The nodes up to there that carry the data
    of the image are marked `prologue`.
    """

    def requires(self, reading: Reading) -> None:
        assert facts(reading.captured.output).value is not None, "the graph carries no values"

    def apply(self, reading: Reading) -> None:
        raw, order = reading.captured.image, _data_nodes(reading)
        reading.image = raw
        for piece in cut_pieces(order, raw):
            if any(_is_layer(reading, node) for node in piece):
                break
            if _is_image(reading, piece[-1]) and not _pads(reading, piece[-1]):
                reading.image = piece[-1]
        made = {reading.image, *ancestors(reading.image)}
        reading.prologue = [node for node in reading.captured.graph.nodes if node in made and node is not raw]
        for node in (raw, *(node for node in order if node in made)):
            facts(node).prologue = True

    def ensures(self, reading: Reading) -> None:
        assert facts(reading.image).prologue, "the image is not marked"


def cut_pieces(order: list[fx.Node], start: fx.Node) -> list[list[fx.Node]]:
    """Split nodes, in running order, at the cut points: those that no edge between other nodes passes over.

    `start` is the value that the nodes are computed of, and none of them.
    """
    position = {node: i for i, node in enumerate(order)}
    pieces: list[list[fx.Node]] = [[]]
    reach = max((position[user] for user in start.users if user in position), default=0)  # the furthest user so far
    for i, node in enumerate(order):
        pieces[-1].append(node)
        if reach <= i:
            pieces.append([])
        reach = max([reach, *(position[user] for user in node.users if user in position)])
    return [piece for piece in pieces if piece]


def _data_nodes(reading: Reading) -> list[fx.Node]:
    """The nodes that carry the image's data to the output, the image left out; sizes and parameters carry none."""
    captured = reading.captured
    needed, carrying = {captured.output, *ancestors(captured.output)}, {captured.image}
    for node in captured.graph.nodes:
        if node in needed and tensors(facts(node).value) and any(n in carrying for n in node.all_input_nodes):
            carrying.add(node)
    return [node for node in captured.graph.nodes if node in carrying and node is not captured.image]


def _is_layer(reading: Reading, node: fx.Node) -> bool:
    """Whether a node is where the network proper begins: a convolution, a pooling, a learned mix of channels.

    What works on a vector for each image, as the layers of a gate do, is none of these, nor is a fixed filter.
    """
    row, module = reading.row(node), reading.captured.module(node)
    shapes = [tensors(facts(n).value)[0].shape for n in node.all_input_nodes if tensors(facts(n).value)]
    if all(math.prod(shape[2:]) == 1 for shape in shapes[:1]):
        return False
    if row is not None:
        learned = row.kind is Kind.PRODUCT and any(_is_learned(n) for n in ancestors(node))
        return learned or ((row.kind in _LAYERS or row.width is Width.FREE) and not _is_fixed_filter(row.kind, node))
    parts = module.modules() if module is not None else ()
    if any((own := layer_row(part)) is not None and own.width is Width.FREE for part in parts):
        return True
    return module is not None and any(parameter.dim() > 2 for parameter in module.parameters())


def _is_fixed_filter(kind: Kind | None, node: fx.Node) -> bool:
    """Whether a function convolves with numbers of which no parameter is a part, as an edge filter does."""
    kernels = node.all_input_nodes[1:] if node.op == "call_function" and kind is Kind.CONV else []
    made_of = {*kernels, *(before for kernel in kernels for before in ancestors(kernel))}
    return bool(kernels) and not any(isinstance(facts(n).value, nn.Parameter) for n in made_of)


def _is_learned(node: fx.Node) -> bool:
    value = facts(node).value if node.op == "get_attr" else None
    return isinstance(value, nn.Parameter) and value.dim() > 1


def _is_image(reading: Reading, node: fx.Node) -> bool:
    """Whether a node's value has the form of an image and is no smaller, but for what a crop takes off its borders.

    Of an image there may be several, such as mirror images, whose scores the head puts together.
    """
    value, image = facts(node).value, facts(reading.captured.image).value
    if not isinstance(value, torch.Tensor) or value.dim() != 4 or len(value) % len(image):
        return False
    return all(round(n / max(1, made)) <= 1 for n, made in zip(image.shape[2:], value.shape[2:], strict=True))


def _pads(reading: Reading, node: fx.Node) -> bool:
    """Whether a node adds pixels around the image."""
    before = facts(node.all_input_nodes[0]).value
    is_padding = reading.kind(node) is Kind.PAD
    return is_padding and isinstance(before, torch.Tensor) and before.shape[2:] != facts(node).value.shape[2:]
