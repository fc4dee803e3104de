"""Compares the layers of a source with those of its top-down network: what SPEC 2 changes, and nothing else."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from td_compiler.emission.leaves import is_of_torch, is_own
from td_compiler.graph.names import is_written
from td_compiler.graph.operators import Kind, layer_row
from td_compiler.graph.parametrised import computed_tensors
from td_compiler.layers.dropout import FastDropout
from td_compiler.layers.even_kernels import EvenConv2d
from td_compiler.layers.folding import FoldedConv2d

__all__ = [
    "common_layers",
    "compare_settings",
    "is_depthwise",
    "layers_of",
    "made_anew",
    "named_layers",
    "source_names",
]

# What the method changes beside the sizes that follow the widths: a stage's operations keep the size of its map (SPEC
# 2.4, 2.6).
_FOLLOWS = {
    *("stride", "padding", "_reversed_padding_repeated_twice", "ceil_mode", "training"),
    "padding_mode",  # that of a padding layer in front becomes the convolution's own
    "inplace",  # no part of what a layer computes; off where a value has other readers
}
_PLAIN = (bool, int, float, str, type(None))


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """The layers by path: modules without children, and those of the table's classes, whatever they are made of."""
    modules = network.named_modules(remove_duplicate=False)
    return {path: m for path, m in modules if path and (not any(m.children()) or _is_layer(m))}


def _is_layer(module: nn.Module) -> bool:
    return layer_row(module) is not None and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules of a source by path, one with two names under both, as if none were behind `torch.compile`."""
    for path, module in model.named_modules(remove_duplicate=False):
        yield path.replace("_orig_mod.", ""), module


def source_names(model: nn.Module) -> Callable[[str], str]:
    """A layer's path in the source, by its path in the top-down network.

    One whose name the network itself uses got an underscore: `merge_.conv` was `merge.conv`.
    """
    own = {name for name, _ in model.named_children()}

    def name(path: str) -> str:
        first, dot, rest = path.partition(".")
        before = first.removesuffix("_")
        return f"{before}{dot}{rest}" if first not in own and before in own else path

    return name


def common_layers(model: nn.Module, td: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """The layers that both networks have: path, the module of the source, that of the top-down network."""
    name = source_names(model)
    layers = layers_of(td)
    moved = {name(path).partition(".")[0] for path in layers if name(path) != path}  # names of the network's own
    found = {name(path): layer for path, layer in layers.items() if path.partition(".")[0] not in moved}
    for path, module in named_layers(model):
        if path in found and "parametrizations" not in path.split("."):  # how a weight is computed, of whatever shape
            yield path, module, found[path]


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer filters every channel by itself."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == module.in_channels > 1


def compare_settings(
    model: nn.Module, td: nn.Module, filters: str, *, without_classifier: bool = False
) -> tuple[int, list[str]]:
    """Compare the settings of all layers that both networks have; returns how many, and every difference in words.

    `without_classifier`: identities may stand in the place of linear layers and convolutions that score the classes.
    """
    count, differences = 0, []
    for path, before, after in common_layers(model, td):
        if _may_be_projection(before) and type(after) is not type(before):
            continue  # a shortcut that has become a projection (SPEC 2.4)
        if without_classifier and type(after) is nn.Identity and isinstance(before, (nn.Linear, nn.Conv2d)):
            continue
        if is_written(type(after)) or (
            isinstance(after, (nn.ModuleDict, nn.Sequential)) and type(before) is not type(after)
        ):
            continue  # read through: what it calls stands in its place
        if layer_row(before) is None and (is_of_torch(type(after)) or is_own(type(after))):
            continue  # a function that it calls was read as the layer that it is
        count += 1
        if _kind(before) is not _kind(after) and isinstance(before, type(after)):
            continue  # a norm with an activation of its own, read as norm and activation
        if _kind(before) not in _forms(after):
            differences.append(f"{path} is a {type(after).__name__}, not a {type(before).__name__}")
            continue
        row = layer_row(before)
        ignored = {*_FOLLOWS, *(("kernel_size",) if filters == "reversed" else ())}
        ignored |= {*row.sizes, *row.padding} if row is not None else set()
        groups = ("groups", "num_groups") if filters == "uniform" else ("num_groups",)
        ignored |= {name for name in groups if _had_to_change(before, after, name)}
        if is_depthwise(before):
            ignored.add("groups")
            if after.groups not in (after.in_channels, after.out_channels):
                differences.append(f"{path} is no longer depthwise: groups={after.groups} of {after.in_channels}")
        old, new = _plain(before, ignored), _plain(after, ignored)
        differences += [f"{path}.{k}: {old.get(k)!r} became {new.get(k)!r}" for k in old if old[k] != new.get(k)]
        if before.training is not after.training:
            differences.append(f"{path}.training: {before.training} became {after.training}")
        differences += [f"{path}.{name}: {what}" for name, what in _tensor_differences(before, after)]
    return count, differences


def _may_be_projection(module: nn.Module) -> bool:
    """Whether a module may be a shortcut without a layer: an identity, an empty container, a function of the user's."""
    row = layer_row(module)
    return (row is None or row.kind is Kind.IDENTITY) and not any(True for _ in module.parameters())


def made_anew(model: nn.Module, td: nn.Module) -> tuple[str, ...]:
    """How the names of tensors begin of which a weight is computed whose shape has changed: all of them are new."""
    found: list[str] = []
    for path, before, after in common_layers(model, td):
        was, is_now = computed_tensors(before), computed_tensors(after)
        for name in was.keys() & is_now.keys():
            starts = (f"{path}.parametrizations.{name}.", f"{path}.{name}_")
            shapes = [
                [value.shape for key, value in layer.state_dict().items() if f"{path}.{key}".startswith(starts)]
                for layer in (before, after)
            ]
            found += starts if shapes[0] != shapes[1] else ()
    return tuple(found)


def _kind(module: nn.Module) -> type[nn.Module]:
    """A layer's class, without the one that torch puts before it, for it alone, where its weight is computed."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _forms(module: nn.Module) -> tuple[type[nn.Module], ...]:
    """A layer's class, and that of which it is another form."""
    forms = {FoldedConv2d: nn.Conv2d, EvenConv2d: nn.Conv2d, FastDropout: nn.Dropout}
    return _kind(module), *(plain for form, plain in forms.items() if isinstance(module, form))


def _had_to_change(before: nn.Module, after: nn.Module, name: str) -> bool:
    """Whether the width does not divide into the groups of the source, but into those that there are now."""
    sizes = [getattr(after, size) for size in ("in_channels", "out_channels", "num_channels") if hasattr(after, size)]
    old, new = getattr(before, name, 1), getattr(after, name, 1)
    return any(size % old for size in sizes) and not any(size % new for size in sizes)


def _plain(module: nn.Module, ignored: set[str]) -> dict[str, Any]:
    """A layer's settings: plain values and tuples of them that its class speaks of.

    What the class's code never mentions, such as a mark that a library leaves on every module, sets nothing.
    """
    kind: Any = type(module)
    mentioned = _mentioned(kind)
    return {
        name: value
        for name, value in vars(module).items()
        if name in mentioned
        and name not in ignored
        and (isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value)))
    }


@functools.cache
def _mentioned(kind: type) -> frozenset[str]:
    """The names and words in the code of a class and those that it is made of, up to `nn.Module`."""
    classes = itertools.takewhile(lambda each: each is not nn.Module, kind.__mro__)
    functions = itertools.chain.from_iterable(_functions(value) for each in classes for value in vars(each).values())
    return frozenset(itertools.chain.from_iterable(_words(function.__code__) for function in functions))


def _functions(value: Any) -> Iterator[types.FunctionType]:
    parts = (value, *(getattr(value, name, None) for name in ("__func__", "fget", "fset", "func", "__wrapped__")))
    return (part for part in parts if isinstance(part, types.FunctionType))


def _words(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from _words(constant)


def _tensor_differences(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, str]]:
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    for name in old.keys() ^ new.keys():
        yield name, "is gone" if name in old else "is new"
    for name in old.keys() & new.keys():
        if old[name].requires_grad is not new[name].requires_grad:
            yield name, f"requires_grad became {new[name].requires_grad}"
        if old[name].dtype is not new[name].dtype or old[name].device != new[name].device:
            yield name, f"became {new[name].dtype} on {new[name].device}"
