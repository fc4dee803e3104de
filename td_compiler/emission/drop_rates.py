"""The rates at which a network drops numbers and whole branches: arguments of its class."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from td_compiler.emission.layout import Atom, Doc, Group, Join, Number, atoms, call, substitute
from td_compiler.emission.leaves import is_of_torch
from td_compiler.layers.drop_path import DropPath

__all__ = ["as_drop_path", "drop_rate", "fold_rates", "path_rates", "with_rate"]

_MOST_STEPS = 512  # of a rate that grows from block to block


def as_drop_path(module: nn.Module) -> DropPath | None:
    """The `DropPath` that computes, and draws, what a module does; None if there is none."""
    kind = type(module)
    settings = {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}
    rates = [value for value in settings.values() if type(value) is float]
    if module._modules or module._parameters or module._buffers or is_of_torch(kind) or len(rates) != 1:
        return None
    if not 0 <= rates[0] < 1 or not all(isinstance(value, (bool, int, float, str)) for value in settings.values()):
        return None
    found = _drops_paths(kind, tuple(settings.items()))  # type: ignore[arg-type]  # a class has a hash too
    return DropPath(rates[0]) if found else None


@functools.cache
def _drops_paths(kind: type[nn.Module], settings: tuple[tuple[str, object], ...]) -> bool:
    """Whether a module of a class with such attributes does what a `DropPath` of its only float does: tried out."""
    module, own = copy.copy(nn.Module()), DropPath(next(value for _, value in settings if type(value) is float))
    module.__class__ = kind
    module.__dict__.update(settings)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        for training, seed in ((False, 0), (True, 0), (True, 1), (True, 2)):
            module.training = own.training = training
            found = []
            for each in (module, own):
                torch.manual_seed(seed)
                images = torch.rand(16, 2, 3, 3)
                try:
                    found.append(type(each).forward(each, images))
                except Exception:  # whatever a class does that is no dropping of branches
                    return False
            if not isinstance(found[0], torch.Tensor) or not torch.equal(*found):
                return False
    return True


def drop_rate(modules: Mapping[str, nn.Module], head: set[str]) -> dict[str, float]:
    """The layers that drop numbers or maps, by path, if all of them do so at one rate; without any, the head's."""
    found = {path: module.p for path, module in modules.items() if isinstance(module, _DropoutNd)}
    found = {path: p for path, p in found.items() if p} or {path: p for path, p in found.items() if path in head}
    return found if len(set(found.values())) == 1 else {}


def path_rates(layers: Mapping[str, DropPath]) -> tuple[int, dict[str, int]]:
    """A number of steps n and, by path, k: all rates are the highest one times k / n. No steps: they are no such."""
    rates = {path: layer.p for path, layer in layers.items()}
    highest = max(rates.values(), default=0.0)
    for n in range(1, _MOST_STEPS) if highest else ():
        steps = {path: p / highest * n for path, p in rates.items()}
        if all(abs(step - round(step)) < 1e-4 for step in steps.values()):
            return n, {path: round(step) for path, step in steps.items()}
    return 0, {}


def with_rate(doc: Doc, rate: float, argument: str) -> Doc:
    """The constructor of a layer that drops at a rate, with the rate as an argument, also where it is the default."""
    number = Number(rate, "p", argument)
    if any(isinstance(atom, Number) and atom.role == "p" for atom in atoms(doc)):
        return substitute(doc, lambda atom: number if isinstance(atom, Number) and atom.role == "p" else atom)
    match doc:
        case Join((function, Group("(", items) as group)):
            return Join((function, replace(group, items=(*items, Join(("p=", number))))))
        case str():
            return call(doc.removesuffix("()"), p=number)
    return doc


def fold_rates(items: Sequence[Doc], name: str = "rates") -> list[Doc]:
    """Three or more items in a row that differ in `rates[k]`, k going up by one, as one over `rates[a:b]`."""
    places = [_place(item, name) for item in items]
    folded: list[Doc] = []
    start = 0
    while start < len(items):
        end = start + 1
        while (
            end < len(items)
            and None not in (places[start], places[end])
            and places[end] == places[start] + end - start  # type: ignore[operator]
            and _without_rate(items[end], name) == _without_rate(items[start], name)
        ):
            end += 1
        if end - start > 2:
            first = places[start]
            assert first is not None
            one = _without_rate(items[start], name)
            folded.append(Join(("*[", one, f" for p in {name}[{first}:{first + end - start}]]")))
        else:
            folded += items[start:end]
        start = end
    return folded


def _place(item: Doc, name: str) -> int | None:
    found = {a.argument for a in atoms(item) if isinstance(a, Number) and a.argument.startswith(f"{name}[")}
    return int(found.pop().removeprefix(f"{name}[").removesuffix("]")) if len(found) == 1 else None


def _without_rate(item: Doc, name: str) -> Doc:
    def plain(atom: Atom) -> Doc:
        return "p" if isinstance(atom, Number) and atom.argument.startswith(f"{name}[") else atom

    return substitute(item, plain)
