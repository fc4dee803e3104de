"""Fold upsampling and merging into the convolution behind them, where that is faster (`td_compiler.layers.folding`)."""

from __future__ import annotations

import math
import operator
from collections import Counter
from typing import NamedTuple, TypeGuard

import torch
from torch import fx, nn

from td_compiler.capture.meta import META
from td_compiler.graph.notes import plan
from td_compiler.graph.operators import Pair
from td_compiler.graph.states import Building, Pass
from td_compiler.graph.units import TopDownStage
from td_compiler.layers.folding import CombinedConv2d, ConcatConv2d, FoldedConv2d, UpsampledConv2d
from td_compiler.layers.upsample import upsample_nearest

__all__ = ["FoldUpsampling"]

_FEWEST_PIXELS = 64  # of one image, from which on folding an upsampling paid with eight images in a training step


class Site(NamedTuple):
    """A convolution that can be folded.

    Attributes:
        conv: its node.
        form: the class that computes it.
        inputs: what that reads: the map so far and the image, or the map so far and the entry.
        factor: (height, width) by which it upsamples the map so far.
        gone: nodes that no one reads any more, in the order in which they can be erased.
    """

    conv: fx.Node
    form: type[FoldedConv2d]
    inputs: tuple[fx.Node, fx.Node]
    factor: Pair
    gone: tuple[fx.Node, ...]


class FoldUpsampling(Pass[Building]):
    """Convolutions of an upsampled map, and those of merges, take its place and compute the same from the small map.

    Their parameters stay what they were, under the same names.
    """

    def requires(self, building: Building) -> None:
        assert building.modules, "there is no layer"

    def apply(self, building: Building) -> None:
        if not building.options.fast:
            return
        calls = Counter(n.target for graph in building.graphs() for n in graph.find_nodes(op="call_module"))
        for stage in building.stages[1:]:
            for node in list(stage.graph.find_nodes(op="call_module")):
                conv = building.modules[str(node.target)]
                if _is_plain(conv) and calls[node.target] == 1:
                    site = _site(stage, node)
                    if site is not None and _pays(building, stage, site, conv):
                        _fold(building, stage, site, conv)

    def ensures(self, building: Building) -> None:
        for graph in building.graphs():
            graph.lint()


def _is_plain(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution of torch's own with zeros on both sides alike, its weight a parameter."""
    if type(conv) is not nn.Conv2d or "weight" not in conv._parameters:
        return False
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    fits = all(0 <= p < k for p, k in zip(conv.padding, conv.kernel_size, strict=True))
    return fits and conv.stride == conv.dilation == (1, 1)


def _site(stage: TopDownStage, conv: fx.Node) -> Site | None:
    read = conv.args[0]
    if not isinstance(read, fx.Node) or len(conv.all_input_nodes) != 1:
        return None
    if read.target is upsample_nearest:
        x, image = read.all_input_nodes
        gone = (read,) if len(read.users) == 1 else ()
        return Site(conv, UpsampledConv2d, (x, image), plan(read).growth or (1, 1), gone)
    return _merge_site(stage, conv, read)


def _merge_site(stage: TopDownStage, conv: fx.Node, cat: fx.Node) -> Site | None:
    """A convolution over `[x, e]` or `[x + e, e]`."""
    if cat.target is not torch.cat or cat.args[1:] != (1,) or len(cat.users) > 1:
        return None
    first, e = cat.all_input_nodes if len(cat.all_input_nodes) == 2 else (None, None)
    if first is None or e is None or e is not stage.entry:
        return None
    form: type[FoldedConv2d] = ConcatConv2d
    x, gone = first, [cat]
    if first.target is operator.add and first.args[1] is e and len(first.users) == 1:
        form, x = CombinedConv2d, first.all_input_nodes[0]
        gone.append(first)
    factor = (1, 1)
    if x.target is upsample_nearest and set(x.users) <= {cat, first}:
        gone.append(x)
        x, factor = x.all_input_nodes[0], plan(x).growth or (1, 1)
    return Site(conv, form, (x, e), factor, tuple(gone))


def _pays(building: Building, stage: TopDownStage, site: Site, conv: nn.Conv2d) -> bool:
    """Whether the folded form is no slower: it computes fewer products, or makes fewer maps than it needs kernels.

    Transposed convolutions in groups are slow everywhere. Kernels are derived in every training step, at the cost of
    some passes over the weight; what is saved grows with the pixels: products, where a map is upsampled, and else, in a
    merge, some passes over its maps.
    """
    if conv.groups > 1:
        return False
    pixels = math.prod(building.map_size(stage.scale))
    if site.factor != (1, 1):
        return max(conv.kernel_size) > 1 and pixels >= _FEWEST_PIXELS
    return pixels >= 2 * conv.out_channels


def _fold(building: Building, stage: TopDownStage, site: Site, conv: nn.Conv2d) -> None:
    with META:
        folded = site.form(
            conv.in_channels, conv.out_channels, conv.kernel_size, site.factor, conv.padding, conv.groups,  # type: ignore[arg-type]
            bias=conv.bias is not None,
        )  # fmt: skip
    folded.weight, folded.bias = conv.weight, conv.bias
    folded.training = conv.training
    building.modules[str(site.conv.target)] = folded
    site.conv.args = site.inputs
    for node in site.gone:
        stage.graph.erase_node(node)
