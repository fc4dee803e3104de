"""Fast forms of a network's modules, and back: same parameters, same names, the same numbers in less time.

Convolutions of upsampled and of merged maps run from the small map (:mod:`td_compiler.layers.folding`), dropout draws
its masks four at a time (:mod:`td_compiler.layers.dropout`), maps are laid out channels last; each where it pays.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeGuard, TypeVar

import torch
from torch import fx, nn

from td_compiler.graph.notes import copied, plan
from td_compiler.graph.operators import Pair
from td_compiler.layers.dropout import FastDropout
from td_compiler.layers.folding import CombinedConv2d, ConcatConv2d, FoldedConv2d, UpsampledConv2d
from td_compiler.layers.upsample import upsample_nearest
from td_compiler.network.program import bare, take_form
from td_compiler.network.segments import Segment

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet

__all__ = ["fast", "folded", "pixels_of", "plain"]

Net = TypeVar("Net", bound="TopDownNet")

_FEWEST_PIXELS = 64  # of one image, from which on folding an upsampling paid with eight images in a training step


def fast(network: Net) -> Net:
    """Give a network's modules their fast forms, in place; :func:`td_compiler.reverse` does so unless told otherwise.

    Blocks that have been replaced or wrapped stay as they are; hooks stay where they are.

    Returns:
        The network.
    """
    if network.unfolded is None:
        bones = bare(network)
        modules = dict(bones.named_modules(remove_duplicate=False))
        bones.segments = folded(network.segments, pixels_of(network), modules)
        network.unfolded = network.segments
        _follow(network, bones)
        if network.channels_last:
            network.to(memory_format=torch.channels_last)
    return network


def plain(network: Net) -> Net:
    """Give a network's modules the form in which the network is written in the paper, in place: torch's own layers.

    Tools that know torch's layers by their classes, such as those that quantise or prune, want this form.

    Returns:
        The network.
    """
    if network.unfolded is not None:
        bones = bare(network)
        bones.segments, network.unfolded = network.unfolded, None
        for module in bones.modules():
            if type(module) in _PLAIN:
                module.__class__ = _PLAIN[type(module)]
        _follow(network, bones)
        if network.channels_last:
            network.to(memory_format=torch.contiguous_format)
    return network


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    UpsampledConv2d: nn.Conv2d,
    ConcatConv2d: nn.Conv2d,
    CombinedConv2d: nn.Conv2d,
    FastDropout: nn.Dropout,
}


def _follow(network: TopDownNet, bones: TopDownNet) -> None:
    """Give layers the classes that those at their paths have, and what holds them the classes of the text."""
    for path, layer in network.named_modules(remove_duplicate=False):
        like = _at(bones, path)
        if like is None:
            continue
        kind, wanted = type(layer), type(like)
        if _PLAIN.get(wanted) is kind:
            layer.__class__ = wanted
            if isinstance(like, FoldedConv2d):
                layer.factor = like.factor
        elif _PLAIN.get(kind) is wanted:
            layer.__class__ = wanted
            for name in ("factor", "_kept"):
                layer.__dict__.pop(name, None)
    network.segments = bones.segments
    take_form(network, bones)


def _at(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def pixels_of(network: TopDownNet) -> list[int]:
    """How many pixels each stage's map has, coarse to fine, for the images that the network was read with."""
    sizes = {row.name: row.top_down.size for row in network.report.stages}
    return [math.prod(sizes[each.name]) for each in network.segments[:-1]]


def folded(segments: Sequence[Segment], pixels: Sequence[int], modules: Mapping[str, nn.Module]) -> list[Segment]:
    """The segments with their layers' fast forms; the graphs are copies, the layers change in place.

    Args:
        segments: the stages, then the head, which stays as it is.
        pixels: how many each stage's map has.
        modules: the layers by path.
    """
    made: list[Segment] = []
    calls = Counter(str(n.target) for each in segments for n in each.graph.find_nodes(op="call_module"))
    for index, (segment, area) in enumerate(zip(segments, pixels, strict=False)):
        graph = _copy(segment.graph)
        for node in list(graph.find_nodes(op="call_module")):
            layer = modules.get(str(node.target))
            if type(layer) is nn.Dropout and not layer.inplace:
                layer.__class__ = FastDropout
            elif index and _is_plain(layer) and calls[str(node.target)] == 1:
                site = _site(node)
                if site is not None and _pays(site, layer, area):
                    _fold(graph, site, layer)
        graph.lint()
        made.append(Segment(segment.name, segment.scale, graph))
    return [*made, segments[-1]]


def _copy(graph: fx.Graph) -> fx.Graph:
    made = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = made.node_copy(node, copies.__getitem__)
        copies[node].meta = copied(node)
    return made


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


def _is_plain(conv: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution of torch's own with zeros on both sides alike, its weight a parameter."""
    if type(conv) is not nn.Conv2d or "weight" not in conv._parameters:
        return False
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    fits = all(0 <= p < k for p, k in zip(conv.padding, conv.kernel_size, strict=True))
    return fits and conv.stride == conv.dilation == (1, 1)


def _site(conv: fx.Node) -> Site | None:
    read = conv.args[0]
    if not isinstance(read, fx.Node) or len(conv.all_input_nodes) != 1:
        return None
    if read.target is upsample_nearest:
        x, image = read.all_input_nodes
        gone = (read,) if len(read.users) == 1 else ()
        return Site(conv, UpsampledConv2d, (x, image), plan(read).growth or (1, 1), gone)
    return _merge_site(conv, read)


def _merge_site(conv: fx.Node, cat: fx.Node) -> Site | None:
    """A convolution over `[x, e]` or `[x + e, e]`."""
    if cat.target is not torch.cat or cat.args[1:] != (1,) or len(cat.users) > 1:
        return None
    first, e = cat.all_input_nodes if len(cat.all_input_nodes) == 2 else (None, None)
    if first is None or e is None or not plan(e).unit.startswith("entry."):
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


def _pays(site: Site, conv: nn.Conv2d, pixels: int) -> bool:
    """Whether the folded form is no slower: it computes fewer products, or makes fewer maps than it needs kernels.

    Transposed convolutions in groups are slow everywhere. Kernels are derived in every training step, at the cost of
    some passes over the weight; what is saved grows with the pixels: products, where a map is upsampled, and else, in a
    merge, some passes over its maps.
    """
    if conv.groups > 1:
        return False
    if site.factor != (1, 1):
        return max(conv.kernel_size) > 1 and pixels >= _FEWEST_PIXELS
    return pixels >= 2 * conv.out_channels


def _fold(graph: fx.Graph, site: Site, conv: nn.Conv2d) -> None:
    conv.__class__ = site.form
    conv.factor = site.factor  # type: ignore[assignment]
    site.conv.args = site.inputs
    for node in site.gone:
        graph.erase_node(node)
