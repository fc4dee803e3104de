"""Compares the layers of a source with those of its top-down network: what SPEC 2 changes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from td_compiler.capture.capture import skeleton
from td_compiler.capture.meta import ShapesOnly
from td_compiler.graph.operators import layer_row
from td_compiler.layers.dropout import FastDropout
from td_compiler.layers.folding import FoldedConv2d
from td_compiler.network.base import TopDownNet

__all__ = ["compare_settings", "filters_of", "left_out"]

# What the method changes beside the sizes that follow the widths: a stage's operations keep the size of its map (SPEC
# 2.4, 2.6).
_FOLLOWS = {
    *("stride", "padding", "_reversed_padding_repeated_twice", "ceil_mode", "training"),
    "inplace",  # no part of what a layer computes; off where a value has other readers
}
_PLAIN = (bool, int, float, str, type(None))


def _leaves(network: nn.Module) -> dict[str, nn.Module]:
    """The modules without children, by path."""
    return {path: m for path, m in network.named_modules(remove_duplicate=False) if path and not any(m.children())}


def _common(model: nn.Module, td: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    found = _leaves(td)
    for path, module in model.named_modules(remove_duplicate=False):
        if path in found:
            yield path, module, found[path]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def compare_settings(model: nn.Module, td: nn.Module, filters: str) -> tuple[int, list[str]]:
    """Compare the settings of all layers that both networks have; returns how many, and every difference in words."""
    count, differences = 0, []
    for path, before, after in _common(model, td):
        if isinstance(before, nn.Identity):
            continue  # a shortcut that may have become a projection (SPEC 2.4)
        if isinstance(after, (nn.ModuleDict, nn.Sequential)) and type(before) is not type(after):
            continue  # read through: what it calls stands in its place
        count += 1
        if type(before) is not type(after) and isinstance(before, type(after)):
            continue  # a norm with an activation of its own, read as norm and activation
        if type(before) not in _forms(after):
            differences.append(f"{path} is a {type(after).__name__}, not a {type(before).__name__}")
            continue
        row = layer_row(before)
        ignored = {*_FOLLOWS, *(("kernel_size",) if filters == "reversed" else ())}
        ignored |= {*row.sizes, *row.padding} if row is not None else set()
        groups = ("groups", "num_groups") if filters == "uniform" else ("num_groups",)
        ignored |= {name for name in groups if _had_to_change(before, after, name)}
        if _is_depthwise(before):
            ignored.add("groups")
            if after.groups not in (after.in_channels, after.out_channels):
                differences.append(f"{path} is no longer depthwise: groups={after.groups} of {after.in_channels}")
        old, new = _plain(before, ignored), _plain(after, ignored)
        differences += [f"{path}.{k}: {old.get(k)!r} became {new.get(k)!r}" for k in old if old[k] != new.get(k)]
        if before.training is not after.training:
            differences.append(f"{path}.training: {before.training} became {after.training}")
        differences += [f"{path}.{name}: {what}" for name, what in _tensor_differences(before, after)]
    return count, differences


def _forms(module: nn.Module) -> tuple[type[nn.Module], ...]:
    """A layer's class, and that of which it is a faster form."""
    fast = {FoldedConv2d: nn.Conv2d, FastDropout: nn.Dropout}
    return type(module), *(plain for form, plain in fast.items() if isinstance(module, form))


def _had_to_change(before: nn.Module, after: nn.Module, name: str) -> bool:
    """Whether the width does not divide into the groups of the source, but into those that there are now."""
    sizes = [getattr(after, size) for size in ("in_channels", "out_channels", "num_channels") if hasattr(after, size)]
    old, new = getattr(before, name, 1), getattr(after, name, 1)
    return any(size % old for size in sizes) and not any(size % new for size in sizes)


def _plain(module: nn.Module, ignored: set[str]) -> dict[str, Any]:
    """A layer's settings: plain values and tuples of them."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in ignored
        and (isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value)))
    }


def _tensor_differences(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, str]]:
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    for name in old.keys() ^ new.keys():
        yield name, "is gone" if name in old else "is new"
    for name in old.keys() & new.keys():
        if old[name].requires_grad is not new[name].requires_grad:
            yield name, f"requires_grad became {new[name].requires_grad}"
        if old[name].dtype is not new[name].dtype or old[name].device != new[name].device:
            yield name, f"became {new[name].dtype} on {new[name].device}"


def filters_of(model: nn.Module, td: nn.Module, images: torch.Tensor) -> list[tuple[str, int, int]]:
    """(path, filters in the source, in the top-down network) of the convolutions that choose their width.

    A depthwise convolution follows its input, one that reads a single pixel (squeeze-excitation) what it gates.
    """
    sizes: dict[str, torch.Size] = {}
    bones = skeleton(model)
    for path, module in _leaves(bones).items():
        module.register_forward_hook(partial(_note_size, sizes, path))
    with torch.no_grad(), ShapesOnly():
        bones(images)
    return [
        (path, before.out_channels, after.out_channels)
        for path, before, after in _common(model, td)
        if isinstance(before, nn.Conv2d) and isinstance(after, nn.Conv2d)
        if not _is_depthwise(before) and sizes.get(path) != (1, 1)
    ]


def _note_size(sizes: dict[str, torch.Size], path: str, _: nn.Module, inputs: Any, __: Any) -> None:
    if inputs and isinstance(inputs[0], torch.Tensor):
        sizes[path] = inputs[0].shape[2:]


def left_out(
    model: nn.Module, td: TopDownNet, images: torch.Tensor, *, head: bool = True
) -> tuple[list[str], list[str], int]:
    """The layers that ran in the source but are gone: (those that should not be, the stem's), and how many are kept.

    Only layers that compute something of their own count: with parameters, or random (dropout, stochastic depth).
    Without `head` those after the last one that is kept may be gone: they are the source's classifier.
    """
    ran = _run_order(model, images)
    there = {name for path, _ in td.named_modules(remove_duplicate=False) for name in (path, _own_name(path))}
    kept = [path in there for path in ran]
    first = kept.index(True) if True in kept else len(kept)
    last = len(kept) if head else max((i + 1 for i, is_kept in enumerate(kept) if is_kept), default=0)
    gone = [path for path in list(ran)[first:last] if path not in there]
    projections = {path.rpartition(".")[0] for path in gone if _projects(path, ran, gone)}
    lost = [path for path in gone if not _is_pointwise(ran[path]) and path.rpartition(".")[0] not in projections]
    # layers that drop by a function are there as that function
    drops = sum("drop" in str(n.target) or "stochastic" in str(n.target) for n in _operations(td))
    for path in [path for path in lost if not any(True for _ in ran[path].parameters())][:drops]:
        lost.remove(path)
    return lost, list(ran)[:first], sum(kept)


def _operations(td: TopDownNet) -> Iterator[fx.Node]:
    """The functions and methods that a top-down network calls."""
    nodes = (node for segment in td.parts for node in segment.graph.nodes)
    return (node for node in nodes if node.op in ("call_function", "call_method"))


def _drop_rate(module: nn.Module) -> float:
    """The share of values that a layer drops at random in training, 0 if it drops none."""
    rates = (getattr(module, name, None) for name in ("p", "drop_prob"))
    return next((float(rate) for rate in rates if isinstance(rate, (int, float))), 0.0)


def _own_name(path: str) -> str:
    """A source's layer whose name the network itself uses got an underscore: `merge_.conv` was `merge.conv`."""
    first, dot, rest = path.partition(".")
    return f"{first.removesuffix('_')}{dot}{rest}"


def _projects(path: str, ran: dict[str, nn.Module], gone: list[str]) -> bool:
    """Whether a layer that is gone was a shortcut's projection: pointwise, or alone in a module of its own name."""
    home = path.rpartition(".")[0]
    layers = [other for other in ran if other.startswith(f"{home}.")]
    convolutions = sum(isinstance(ran[other], nn.Conv2d) for other in layers)
    alone = convolutions == 1 and set(layers) <= set(gone) and not home.rpartition(".")[2].isdecimal()
    return isinstance(ran[path], nn.Conv2d) and (_is_pointwise(ran[path]) or alone)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) == 1


def _run_order(model: nn.Module, images: torch.Tensor) -> dict[str, nn.Module]:
    """The layers that count, in the order in which they run."""
    bones = skeleton(model)
    ran: dict[str, nn.Module] = {}
    for path, module in _leaves(bones).items():
        if _drop_rate(module) > 0 or any(True for _ in module.parameters()):
            module.register_forward_hook(partial(_note, ran, path))
    with torch.no_grad(), ShapesOnly():
        bones(images)
    return ran


def _note(ran: dict[str, nn.Module], path: str, module: nn.Module, *_: Any) -> None:
    ran.setdefault(path, module)
