"""The parameters of a shared class: found among the values in which its instances differ, and named."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from td_compiler.emission.layout import Doc
from td_compiler.emission.unify import MISSING, Argument, Text, show

__all__ = ["POSITIONAL", "Hole", "Parameters", "find_parameters", "kind_of_layer"]

POSITIONAL = ("in_chans", "in_channels", "channels", "out_channels")
"""Parameters that come first, and are given by position."""

_INPUTS = {"in_channels", "in_features"}
_OUTPUTS = {"out_channels", "out_features"}
_CHANNELS = {*_INPUTS, *_OUTPUTS, "num_features", "num_channels", "normalized_shape", "groups", "channels", "width"}


_IN_PART = {"in_chans": "in_channels", "num_classes": "out_channels"}


@dataclass(frozen=True)
class Hole:
    """The values that stand at one place of a template, one per instance.

    Attributes:
        role: the constructor's parameter that they are given for; "" in the forward.
        values: the values; MISSING for an instance that has no such place.
        in_forward: whether the place is in the forward.
        home: the declaration that the place is in.
    """

    role: str
    values: tuple[Any, ...]
    in_forward: bool
    home: str = ""

    @property
    def kind(self) -> str:
        """Holes of one kind with equal values share a parameter."""
        named = {value.argument if isinstance(value, Argument) else "" for value in self.present}
        if len(named) == 1 and (name := next(iter(named))).isidentifier():
            return name
        if named - {""}:  # of some instances, as the width of the classifier among other layers
            return next((kind for name, kind in _IN_PART.items() if name in named), self.role)
        if self.role == "layer":
            return _layer_kind(self.present)
        is_width = self.role in _CHANNELS or self.role.endswith(("channels", "hidden"))
        return "channels" if is_width else self.role or "size"

    @property
    def key(self) -> Key:
        """What tells this hole's values from others."""
        return self.kind, self.values

    @property
    def present(self) -> list[Any]:
        """The values that there are."""
        return [value for value in self.values if value is not MISSING]

    @property
    def varies(self) -> bool:
        """Whether the instances differ here, or the network's class says what the number is."""
        first, *others = self.present
        return isinstance(first, Argument) or any(value != first or type(value) is not type(first) for value in others)


Key = tuple[str, tuple[Any, ...]]


@dataclass
class Parameters:
    """The parameters of a class.

    Attributes:
        values: every parameter's values, one per instance, by name; in the order in which `__init__` takes them.
        stored: the parameters that the forward reads.
    """

    values: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    _expressions: dict[Key, str] = field(default_factory=dict)

    def expression(self, hole: Hole) -> Doc:
        """What stands at a place: a number, a parameter, a multiple of one, or what the forward reads of it."""
        if not hole.varies:
            return show(hole.present[0], hole.role)
        if hole.in_forward:
            return "self." + next(name for name in self.stored if _fits(hole.values, self.values[name]))
        return self._expressions[hole.key]


def find_parameters(holes: Sequence[Hole], taken: Collection[str]) -> Parameters:
    """The parameters behind the holes of a class; `taken` are names that the class has for something else."""
    varying = list(dict.fromkeys(hole.key for hole in holes if hole.varies and not hole.in_forward))
    counts = {key for key in varying if all(hole.role == "groups" for hole in holes if hole.key == key)}
    derived = _derive(varying, counts)
    bases = [key for key in varying if key not in derived]
    for hole in holes:
        if hole.in_forward and hole.varies and not any(_fits(hole.values, values) for _, values in bases):
            derived.pop(hole.key, None)  # what the forward reads is a parameter, not a multiple of one
            bases.append(hole.key)
    names = _name(bases, derived, holes, taken)
    parameters = Parameters({names[key]: key[1] for key in sorted(bases, key=lambda key: _rank(names[key]))})
    parameters._expressions = dict(names)
    for key in derived:
        parameters._expressions[key] = _expression(key, derived, names)
    for hole in holes:
        if hole.in_forward and hole.varies:
            name = next(name for name, values in parameters.values.items() if _fits(hole.values, values))
            if name not in parameters.stored:
                parameters.stored.append(name)
    return parameters


def _layer_kind(values: list[Any]) -> str:
    """What classes of layers are: all activations, all normalisations, or neither."""
    kinds = {kind_of_layer(value.text) or "layer" for value in values if isinstance(value, Text)}
    return kinds.pop() if len(kinds) == 1 else "layer"


def kind_of_layer(name: str) -> str:
    """Whether a class of layers, `nn.ReLU`, is an `activation` or a `norm`; "" for others."""
    home = getattr(getattr(nn, name.removeprefix("nn."), None), "__module__", "")
    return _LAYER_KINDS.get(home.rpartition(".")[2], "")


_LAYER_KINDS = {"activation": "activation", "batchnorm": "norm", "normalization": "norm", "instancenorm": "norm"}


def _fits(part: tuple[Any, ...], whole: tuple[Any, ...]) -> bool:
    """Whether values are those of a parameter in every instance that has them."""
    return all(a is MISSING or (a == b and type(a) is type(b)) for a, b in zip(part, whole, strict=True))


def _derive(keys: list[Key], counts: set[Key]) -> dict[Key, tuple[Key, str]]:
    """Values that are always those of others, a multiple of them, or the padding that keeps a kernel's map size.

    `counts` are those that are numbers of groups alone, which follow from channels and not channels from them.
    """
    derived: dict[Key, tuple[Key, str]] = {}
    for key in sorted(keys, key=lambda key: (-key[1].count(MISSING), _total(key[1]))):
        for base in keys:
            if base == key or base in derived or base in counts:
                continue
            form = _share(key, base) if key in counts else _form(key, base)
            if form:
                derived[key] = base, form
                break
    return derived


def _total(values: tuple[Any, ...]) -> float:
    return sum(value for value in values if isinstance(value, (int, float)))


def _form(key: Key, base: Key) -> str:
    (kind, values), (other, given) = key, base
    if kind == other and _fits(values, given):
        return "{}"
    pairs = [(a, b) for a, b in zip(values, given, strict=True) if a is not MISSING]
    if not all(type(a) is int and type(b) is int and b > 0 for a, b in pairs):
        return ""
    factor = pairs[0][0] // pairs[0][1]
    if kind == other == "channels" and factor > 1 and all(a == factor * b for a, b in pairs):
        return f"{factor} * {{}}"
    if (kind, other) == ("padding", "kernel_size") and all(a == b // 2 for a, b in pairs):
        return "{} // 2"
    return ""


def _share(key: Key, base: Key) -> str:
    """Numbers of groups as those of channels, divided by the channels of a group."""
    pairs = [(a, b) for a, b in zip(key[1], base[1], strict=True) if a is not MISSING]
    if base[0] != "channels" or not all(type(a) is int and type(b) is int for a, b in pairs):
        return ""
    size = pairs[0][1] // pairs[0][0]
    return f"{{}} // {size}" if size > 1 and all(size * a == b for a, b in pairs) else ""


def _expression(key: Key, derived: dict[Key, tuple[Key, str]], names: dict[Key, str]) -> str:
    if key not in derived:
        return names[key]
    base, form = derived[key]
    return form.format(_expression(base, derived, names))


def _root(key: Key, derived: dict[Key, tuple[Key, str]]) -> Key:
    while key in derived:
        key = derived[key][0]
    return key


def _name(
    bases: list[Key], derived: dict[Key, tuple[Key, str]], holes: Sequence[Hole], taken: Collection[str]
) -> dict[Key, str]:
    channels = [key for key in bases if key[0] == "channels"]
    placed = [hole for hole in holes if hole.kind == "channels" and not hole.in_forward]
    inputs = [hole.key for hole in placed if hole.role in _INPUTS]
    first = next(iter(inputs + [hole.key for hole in placed if hole.role not in _OUTPUTS]), None)
    outputs = [hole for hole in reversed(placed) if hole.role in _OUTPUTS]
    last = next((hole.key for hole in [*(hole for hole in outputs if MISSING not in hole.values), *outputs]), None)
    first = _root(first, derived) if first else None
    last = _root(last, derived) if last else None
    reads = {_root(hole.key, derived) for hole in placed if hole.role in _INPUTS}
    homes: dict[Key, Hole] = {}
    for hole in holes:
        homes.setdefault(_root(hole.key, derived), hole)
    inner = [key for key in channels if key not in (first, last) and homes[key].home.isidentifier()]
    within = {_root(hole.key, derived) for hole in placed if hole.role not in _OUTPUTS}
    branches = any(key not in within for key in inner)  # what nothing inside takes is what a branch gives
    names: dict[Key, str] = {}
    for key in bases:
        if key[0] != "channels":
            name = key[0]
        elif len(channels) == 1:
            name = "channels" if key in reads or last != key else "out_channels"
        elif key in (first, last):
            name = "channels" if first == last else "in_channels" if key == first else "out_channels"
        else:
            name = "groups" if homes[key].role == "groups" else "hidden"
        home = homes[key].home if homes[key].home.isidentifier() else ""
        if name == "hidden" and home and branches:
            name = f"{home}_hidden" if key in within else f"{home}_channels"
        kept = any(hole.in_forward and hole.key == key for hole in holes)
        used = {*names.values(), *taken} - ({home} if name == home and not kept else set())
        candidates = [name, *([f"{home}_{name}"] if home else []), *(f"{name}{i}" for i in range(2, len(used) + 3))]
        names[key] = next(n for n in candidates if n not in used)
    return names


def _rank(name: str) -> tuple[int, str]:
    order = (*POSITIONAL, "hidden")
    return (order.index(name), "") if name in order else (len(order), name)
