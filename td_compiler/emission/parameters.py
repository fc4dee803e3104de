"""The parameters of a shared class: found among the numbers in which its instances differ, and named."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from td_compiler.emission.layout import Doc, Number

__all__ = ["POSITIONAL", "Hole", "Parameters", "find_parameters"]

POSITIONAL = ("in_chans", "in_channels", "channels", "out_channels")
"""Parameters that come first, and are given by position."""

_INPUTS = {"in_channels", "in_features"}
_OUTPUTS = {"out_channels", "out_features"}
_CHANNELS = {*_INPUTS, *_OUTPUTS, "num_features", "num_channels", "normalized_shape", "groups", "channels", "width"}


@dataclass(frozen=True)
class Hole:
    """The numbers that stand at one place of a structure, one per instance.

    Attributes:
        role: the constructor's parameter that they are given for; "" in the forward.
        values: the numbers.
        in_forward: whether the place is in the forward.
        arguments: which arguments of the network's class the numbers are, one per instance; "" for none.
    """

    role: str
    values: tuple[int | float, ...]
    in_forward: bool
    arguments: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Holes of one kind with equal numbers share a parameter."""
        if any(self.arguments):
            return self.arguments[0] if len(set(self.arguments)) == 1 else self.role
        return "channels" if self.role in _CHANNELS else self.role or "size"

    @property
    def key(self) -> tuple[str, tuple[int | float, ...]]:
        """What tells this hole's numbers from others."""
        return self.kind, self.values

    @property
    def varies(self) -> bool:
        """Whether the instances differ here, or the network's class says what the number is."""
        return any(self.arguments) or any(
            value != self.values[0] or type(value) is not type(self.values[0]) for value in self.values
        )


Key = tuple[str, tuple[int | float, ...]]


@dataclass
class Parameters:
    """The parameters of a class.

    Attributes:
        values: every parameter's values, one per instance, by name; in the order in which `__init__` takes them.
        stored: the parameters that the forward reads.
        arguments: which arguments of the network's class a parameter's values are, as in `Hole`.
    """

    values: dict[str, tuple[int | float, ...]] = field(default_factory=dict)
    arguments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    _expressions: dict[Key, str] = field(default_factory=dict)

    def expression(self, hole: Hole) -> Doc:
        """What stands at a place: a number, a parameter, a multiple of one, or what the forward reads of it."""
        if not hole.varies:
            return Number(hole.values[0], hole.role)
        if hole.in_forward:
            return "self." + next(name for name in self.stored if self.values[name] == hole.values)
        return self._expressions[hole.key]


def find_parameters(holes: Sequence[Hole], taken: Collection[str]) -> Parameters:
    """The parameters behind the holes of a class; `taken` are names that the class has for something else."""
    varying = {hole.key: hole for hole in holes if hole.varies and not hole.in_forward}
    derived = _derive(list(varying))
    bases = [key for key in varying if key not in derived]
    for hole in holes:
        if hole.in_forward and hole.varies and all(values != hole.values for _, values in bases):
            derived.pop(hole.key, None)  # what the forward reads is a parameter, not a multiple of one
            bases.append(hole.key)
    names = _name(bases, derived, holes, taken)
    parameters = Parameters({names[key]: key[1] for key in sorted(bases, key=lambda key: _rank(names[key]))})
    parameters.arguments = {
        name: next(h.arguments for h in holes if names.get(h.key) == name) or ("",) * len(values)
        for name, values in parameters.values.items()
    }
    parameters._expressions = dict(names)
    for key, (base, form) in derived.items():
        parameters._expressions[key] = form.format(names[base])
    for hole in holes:
        if hole.in_forward and hole.varies:
            name = next(name for name, values in parameters.values.items() if values == hole.values)
            if name not in parameters.stored:
                parameters.stored.append(name)
    return parameters


def _derive(keys: list[Key]) -> dict[Key, tuple[Key, str]]:
    """Numbers that are always a multiple of others, or the padding that keeps a kernel's map size."""
    derived: dict[Key, tuple[Key, str]] = {}
    for key in sorted(keys, key=lambda key: sum(key[1])):
        kind, values = key
        for base in keys:
            if base == key or base in derived or not all(isinstance(v, int) and v > 0 for v in (*values, *base[1])):
                continue
            factor = int(values[0] // base[1][0])
            if kind == base[0] == "channels" and factor > 1 and values == tuple(factor * v for v in base[1]):
                derived[key] = base, f"{factor} * {{}}"
            elif (kind, base[0]) == ("padding", "kernel_size") and values == tuple(v // 2 for v in base[1]):
                derived[key] = base, "{} // 2"
            if key in derived:
                break
    return derived


def _name(
    bases: list[Key], derived: dict[Key, tuple[Key, str]], holes: Sequence[Hole], taken: Collection[str]
) -> dict[Key, str]:
    channels = [key for key in bases if key[0] == "channels"]
    placed = [hole for hole in holes if hole.kind == "channels" and not hole.in_forward]
    first = next((hole.key for hole in placed if hole.role not in _OUTPUTS), None)
    last = next((hole.key for hole in reversed(placed) if hole.role in _OUTPUTS), None)
    reads = {derived.get(hole.key, (hole.key,))[0] for hole in placed if hole.role in _INPUTS}
    names: dict[Key, str] = {}
    for key in bases:
        if key[0] != "channels":
            name = key[0]
        elif len(channels) == 1:
            name = "channels" if key in reads or last != key else "out_channels"
        elif key in (first, last):
            name = "channels" if first == last else "in_channels" if key == first else "out_channels"
        else:
            name = "width"
        used = {*names.values(), *taken}
        names[key] = next(n for n in (name, *(f"{name}{i}" for i in range(2, len(used) + 3))) if n not in used)
    return names


def _rank(name: str) -> tuple[int, str]:
    return (POSITIONAL.index(name), "") if name in POSITIONAL else (len(POSITIONAL), name)
