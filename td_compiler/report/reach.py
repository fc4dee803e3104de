"""Which pixels of its input an operator reads for pixels of its output: the steps of a receptive field (SPEC 6.6).

A *span* is the first and the last pixel of a run of pixels, on an image without borders. Every operator with spatial
extent has a step from the span of its output to that of its input; everything else works pixel by pixel.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from td_compiler.graph.notes import facts, is_top_down, plan, size_of
from td_compiler.graph.operators import Kind, Pair, lookup, pair
from td_compiler.layers.folding import ConcatConv2d, FoldedConv2d
from td_compiler.layers.upsample import upsample_aligned, upsample_bilinear

__all__ = ["REACH_OF_FILTER", "Span", "UnknownReach", "Walk", "bilinear", "hull", "window"]

# The first and the last pixel, each an array (2, n): along height and width, for n runs at once.
Span = tuple[NDArray[np.int64], NDArray[np.int64]]
Step = Callable[[Span], Span]

# Way of scaling the image -> (factor f > 1 -> the first and the last pixel that output pixel 0 reads); pixel i reads
# the same i f pixels on.
REACH_OF_FILTER: dict[str, Callable[[int], Pair]] = {
    "gaussian": lambda f: (-f, 2 * f - 1),
    "laplacian": lambda f: (-f, 2 * f - 1),
    "blur": lambda f: ((-3 * f) // 2, -((-3 * f) // 2)),
    "blurpool": lambda f: (1 - f, 2 * f - 2),
    "pool": lambda f: (0, f - 1),
    "area": lambda f: (0, f - 1),
    "none": lambda f: (0, 0),
}


_INTERPOLATIONS = {"interpolate", "Upsample"}


class UnknownReach(Exception):
    """It is not known which pixels an operator reads."""


def hull(spans: Iterable[Span]) -> Span:
    """The run from the first to the last pixel of several."""
    firsts, lasts = zip(*spans, strict=True)
    return np.minimum.reduce(firsts), np.maximum.reduce(lasts)


def window(first: Sequence[int], last: Sequence[int], stride: Sequence[int]) -> Step:
    """Output pixel i reads pixels i stride + first to i stride + last; all (height, width)."""
    low, high, step = (np.array(numbers).reshape(2, 1) for numbers in (first, last, stride))
    return lambda span: (span[0] * step + low, span[1] * step + high)


def nearest(factor: Pair) -> Step:
    """Upsampling by repetition; `factor` is (height, width)."""
    f = np.array(factor).reshape(2, 1)
    return lambda span: (span[0] // f, span[1] // f)


def bilinear(factor: Pair) -> Step:
    """Bilinear upsampling: the two pixels around (i + 0.5) / factor - 0.5, or the one that lies there."""
    f = np.array(factor).reshape(2, 1)
    return lambda span: ((2 * span[0] + 1 - f) // (2 * f), -((f - 2 * span[1] - 1) // (2 * f)))


class Walk:
    """The way back through a graph.

    Args:
        module_of: `call_module` node -> the layer that it calls, else None.
        value_of: node -> what it computed (a number, a size, a filter), or raises `UnknownReach`.
        growth: (height, width) factor of the graph's upsamplings, where it is a top-down stage and they do not say so
            themselves.
    """

    def __init__(
        self,
        module_of: Callable[[fx.Node], nn.Module | None],
        value_of: Callable[[fx.Node], Any],
        growth: Pair = (1, 1),
    ) -> None:
        self._module_of = module_of
        self._value_of = value_of
        self._growth = growth

    def back(self, graph: fx.Graph, start: Mapping[fx.Node, Span], first: fx.Node | None = None) -> dict[fx.Node, Span]:
        """Node -> the pixels of its map that the pixels `start` of some nodes' maps read.

        Nodes whose map is not read are not there, nor those before the node `first`.

        Raises:
            UnknownReach: if there is an operator on the way whose reach is not known.
        """
        numbers = _numbers(graph)
        spans = dict(start)
        for node in reversed(graph.nodes):
            if node is first:
                break
            if node not in spans or not node.op.startswith("call_") or node in numbers:
                continue
            step = self._step(node)
            if step is None:
                continue
            before = step(spans[node])
            for source, pixels in self._read(node, before).items():
                spans[source] = hull([spans[source], pixels]) if source in spans else pixels
        return spans

    def _read(self, node: fx.Node, span: Span) -> dict[fx.Node, Span]:
        """The inputs that an operator reads pixels of, and which."""
        module, sources = self._module_of(node), node.all_input_nodes
        if isinstance(module, FoldedConv2d):
            grown, other = sources
            own = {other: span} if isinstance(module, ConcatConv2d) else {}
            return {grown: nearest(module.factor)(span), **own}
        # An upsampling reads of its second input, the image, nothing but the size.
        return dict.fromkeys(sources[:1] if self._kind(node) is Kind.UPSAMPLE else sources, span)

    def _kind(self, node: fx.Node) -> Kind | None:
        row = lookup(node, self._module_of(node))
        return row.kind if row else None

    def _name(self, node: fx.Node) -> str:
        module = self._module_of(node)
        return type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))

    def _step(self, node: fx.Node) -> Step | None:
        """The operator's step; None for a global pooling, which is left out."""
        kind, module = self._kind(node), self._module_of(node)
        sizes = [size for size in map(_map_size, node.all_input_nodes) if size is not None]
        # A gate of one pixel is spread over the map that it is multiplied with.
        before, after = max(sizes, key=math.prod, default=None), _map_size(node)
        if kind is Kind.GLOBAL_POOL and size_of(node) in {None, (1, 1)}:
            return None
        if kind is Kind.POOL and after == (1, 1) != before:
            return None
        if isinstance(module, nn.Sequential):
            return _chain([_sliding(_settings(layer)) for layer in module if _settings(layer)])
        has_kernel = module is not None and bool(_settings(module)) and kind is not Kind.ALONG_CHANNELS
        if kind is Kind.CONV or kind is Kind.POOL or has_kernel:
            return self._sliding_node(node, before, after)
        if kind is Kind.PAD:
            left, top = self._padding(node)
            return window((-top, -left), (-top, -left), (1, 1))
        if kind is Kind.UPSAMPLE:
            return (bilinear if node.target in {upsample_bilinear, upsample_aligned} else nearest)(
                (plan(node).growth if is_top_down(node) else None) or self._growth
            )
        if before not in {None, (1, 1)} and after is not None and before != after:
            return self._resizing(node, before, after)
        if after is None and self._name(node) in _INTERPOLATIONS:
            raise UnknownReach
        return lambda span: span

    def _sliding_node(self, node: fx.Node, before: Pair | None, after: Pair | None) -> Step | None:
        """A convolution or pooling, as layer or function."""
        module = self._module_of(node)
        if module is not None:
            given: dict[str, Any] = _settings(module)
        else:
            names: tuple[str, ...] = ("", "weight", "bias", "stride", "padding", "dilation")
            if self._kind(node) is Kind.POOL:
                name = str(getattr(node.target, "__name__", node.target))
                names = ("", "kernel_size", "stride", "padding", "dilation" if "max" in name else "ceil_mode")
            given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
            weight: Any = given.get("weight")
            if weight is not None:
                given = {"stride": 1, "kernel_size": tuple(self._value_of(weight).shape[-2:])} | given
        if "kernel_size" not in given or getattr(module, "transposed", False):
            raise UnknownReach
        if isinstance(given["kernel_size"], fx.Node):  # a pooling over as many pixels as the map has
            return None
        return _sliding(given, before, after)

    def _padding(self, node: fx.Node) -> Pair:
        """How many pixels are put left of and above the map."""
        given: Any = getattr(self._module_of(node), "padding", None)
        if given is None:
            given = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else ())
        numbers = [self._value_of(n) if isinstance(n, fx.Node) else n for n in given]
        left, _, top, _ = [*numbers, 0, 0, 0, 0][:4]
        return left, top

    def _resizing(self, node: fx.Node, before: Pair, after: Pair) -> Step:
        """What changes the size of the map without a kernel: a slice, a space to depth, an interpolation."""
        if node.target is operator.getitem:
            index: Any = node.args[1]
            cuts = [cut if isinstance(cut, slice) else slice(None) for cut in (*index, *[slice(None)] * 4)][:4]
            height, width = (cut for axis, cut in enumerate(cuts) if axis not in (0, facts(node).axis))
            starts = [cut.indices(n)[0] for cut, n in zip((height, width), before, strict=True)]
            return window(starts, starts, [cut.step or 1 for cut in (height, width)])
        name = self._name(node)
        mode = node.kwargs.get("mode", getattr(self._module_of(node), "mode", "nearest"))
        if name in _INTERPOLATIONS and after[0] > before[0] and mode in {"nearest", "bilinear"}:
            return (bilinear if mode == "bilinear" else nearest)((after[0] // before[0], after[1] // before[1]))
        factor = before[0] // after[0], before[1] // after[1]
        widths = facts(node).width, facts(node.all_input_nodes[0]).width
        if all(map(_divides, after, before)) and widths[0] == widths[1] * math.prod(factor):
            return window((0, 0), [f - 1 for f in factor], factor)  # every number is kept: a space to depth
        raise UnknownReach


def _settings(module: nn.Module) -> dict[str, Any]:
    """A layer's kernel size, stride, padding and the like; nothing of a layer without a kernel.

    A blur pool calls its kernel size `filt_size`, as Zhang's own implementation does, which others follow.
    """
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if hasattr(module, "filt_size"):
        given["kernel_size"] = module.filt_size
    return given if "kernel_size" in given else {}


def _chain(steps: Sequence[Step]) -> Step:
    """One operator after the other."""

    def step(span: Span) -> Span:
        for one in reversed(steps):
            span = one(span)
        return span

    return step


def _sliding(given: dict[str, Any], before: Pair | None = None, after: Pair | None = None) -> Step:
    """A kernel that slides over the map from size `before` to size `after`, where these are known."""
    size, dilation = pair(given["kernel_size"]), pair(given.get("dilation", 1))
    stride = pair(given.get("stride") or given["kernel_size"])
    extent = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    padding = given.get("padding", 0)
    words = {"same": [e // 2 for e in extent], "valid": [0, 0]}
    pads = words[padding] if isinstance(padding, str) else list(pair(padding))
    if before is not None and after is not None and padding != "same" and not given.get("ceil_mode"):
        pads = [_padded(*sizes) for sizes in zip(before, after, extent, stride, pads, strict=True)]
    first = [-p for p in pads]
    return window(first, [f + e for f, e in zip(first, extent, strict=True)], stride)


def _padded(before: int, after: int, extent: int, stride: int, padding: int) -> int:
    """The pixels put in front of a map: `padding`, unless the layer pads in its forward.

    Then its map has ceil(before / stride) pixels, and of an odd number of padded pixels the last is behind.
    """
    if (before + 2 * padding - extent - 1) // stride + 1 == after or after != -(-before // stride):
        return padding
    return max((after - 1) * stride + extent + 1 - before, 0) // 2


def _divides(small: int, large: int) -> bool:
    return large % small == 0


def _map_size(node: fx.Node | None) -> Pair | None:
    """(height, width) of the map that a node carries, or, of a map that is folded, of the last one that was not."""
    while node is not None and (size := size_of(node)) is None:
        node = node.all_input_nodes[0] if node.all_input_nodes else None
    return None if node is None else size


def _numbers(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that compute with sizes: they read no pixel."""
    numbers: set[fx.Node] = set()
    for node in graph.nodes:
        asks = node.target is getattr or (node.op == "call_method" and node.target in {"size", "dim"})
        derived = node.all_input_nodes and all(source in numbers for source in node.all_input_nodes)
        if asks or derived:
            numbers.add(node)
    return numbers
