"""Let numbers written into the source follow the widths: sizes of splits, bounds of slices, shapes of views."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import fx

from td_compiler.graph.states import Conversion, Pass
from td_compiler.passes.nodes import channel_slice

__all__ = ["RewriteSizes"]


class RewriteSizes(Pass):
    """A literal that counts channels is scaled as the channels of its tensor are.

    `torch.split(x, [16, 48], 1)` on 64 channels becomes `[8, 24]` on 32; `x[:, :16]` becomes `x[:, :8]`; in a `view`
    the literals between batch and pixels are scaled. Numbers computed from `x.shape` follow by themselves.
    """

    def requires(self, conversion: Conversion) -> None:
        layers = conversion.graphs()[0].find_nodes(op="call_module")
        assert all("width" in node.meta for node in layers), "SetWidths has not run"

    def apply(self, conversion: Conversion) -> None:
        for graph in conversion.graphs():
            for node in graph.nodes:
                rewrite = _REWRITES.get(getattr(node.target, "__name__", str(node.target)))
                if rewrite is not None and "width" in node.meta and node.all_input_nodes:
                    rewrite(node)

    def ensures(self, conversion: Conversion) -> None:
        for graph in conversion.graphs():
            graph.lint()


def _change(node: fx.Node) -> tuple[int, int] | None:
    """What a node reads: (channels in the bottom-up network, channels here); None if there is nothing to do."""
    source = node.meta.get("source")
    before = next((n for n in source.all_input_nodes if "width" in n.meta), None) if source is not None else None
    if before is None or "width" not in node.all_input_nodes[0].meta:
        return None
    old, new = int(before.meta["width"]), int(node.all_input_nodes[0].meta["width"])
    return None if old == new else (old, new)


def _shares(sizes: list[int], old: int, new: int) -> list[int]:
    """Scale sizes that sum to `old` so that they sum to `new`, the largest taking up what rounding leaves."""
    scaled = [round(size * new / old) for size in sizes]
    scaled[sizes.index(max(sizes))] += new - sum(scaled)
    return scaled


def _split(node: fx.Node) -> None:
    change = _change(node)
    at = "split_size" if "split_size" in node.kwargs else "split_size_or_sections"
    given: Any = node.kwargs.get(at, node.args[1] if len(node.args) > 1 else None)
    if change is None or given is None or not _all_numbers(given):
        return
    sizes: Any = max(1, given * change[1] // change[0]) if isinstance(given, int) else _shares(list(given), *change)
    if len(node.args) > 1:
        node.update_arg(1, sizes)
    else:
        node.update_kwarg(at, sizes)


def _all_numbers(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value))


def _slice(node: fx.Node) -> None:
    change, part = _change(node), channel_slice(node)
    if change is None or part is None or not (_is_bound(part.start) and _is_bound(part.stop)):
        return
    (old, new), width, index = change, int(node.meta["width"]), node.args[1]
    start = new - width if part.stop is None else round((part.start or 0) * new / old)
    stop = None if part.stop is None else start + width
    axis = node.meta["source"].meta["axis"]
    assert isinstance(index, tuple)
    node.update_arg(1, (*index[:axis], slice(start or None, stop, part.step), *index[axis + 1 :]))


def _is_bound(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value >= 0)


def _view(node: fx.Node) -> None:
    change = _change(node)
    nested = len(node.args) == 2 and isinstance(node.args[1], (list, tuple))
    given: Any = node.args[1] if nested else node.args[1:]
    dims = list(given)
    counts = [i for i, d in enumerate(dims) if i > 0 and isinstance(d, int) and d > 1]
    if change is None or not counts:
        return
    if math.prod(dims[i] for i in counts) == change[0]:
        largest = max(counts, key=lambda i: dims[i])
        dims[largest] = dims[largest] * change[1] // change[0]
    else:
        _regroup(dims, change[1])
    node.args = (node.args[0], dims) if nested else (node.args[0], *dims)


def _regroup(dims: list[Any], width: int) -> None:
    """In `x.view(n, groups, c // groups, h, w)`, groups that do not divide the new width become groups that do."""
    for share in dims:
        if not isinstance(share, fx.Node) or share.target is not operator.floordiv:
            continue
        groups: Any = share.meta.get("source", share).args[1]
        if groups in dims[1:]:
            fitting = math.gcd(groups, width)
            dims[dims.index(groups, 1)] = fitting
            share.update_arg(1, fitting)


_REWRITES = {
    "split": _split,
    "split_with_sizes": _split,
    "getitem": _slice,
    "view": _view,
    "reshape": _view,
    "expand": _view,
}
