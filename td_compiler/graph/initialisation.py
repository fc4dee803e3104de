"""How a network draws its first values: read off the values that it has, drawn by for new ones (SPEC 8.4).

The tensors of one kind, such as the weights of all convolutions, are explained together: by one law, or by one for most
of them and others for those that a few share. Where that does not work the network has been trained, or has no values
(the meta device); then its own way to draw them is asked, on a copy, where it has one that takes no arguments.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from td_compiler.graph.laws import Law, Sample, fans_of, fits, fits_together, fitting_law, like_values, samples_of
from td_compiler.surroundings import own_draws

__all__ = [
    "Initialisation",
    "default_law",
    "is_depthwise",
    "kind_of",
    "own_hook",
    "read_initialisation",
    "shows_first_values",
]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_HOLDERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_ZERO, _ONE = Law("constant", 0.0), Law("constant", 1.0)
_TORCH = Law("uniform", math.sqrt(1 / 3), "in")
_HE = Law("normal", math.sqrt(2), "in")
_WAYS = ("init_weights", "_init_weights", "_initialize_weights", "initialize_weights", "reset_parameters")
_ENOUGH = 0.5  # of a network's weights explained: it has not been trained


class _Tensor(NamedTuple):
    """A parameter of a network, of the layer `module`, which stands at a path."""

    path: str
    module: nn.Module
    name: str
    value: torch.Tensor

    @property
    def full_name(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def last_name(self) -> str:
        """What its layer is called among its like: `bn2`, `block.3`."""
        names = self.path.split(".")
        start = next((i for i in reversed(range(len(names))) if not names[i].isdecimal()), 0)
        return ".".join(names[start:])

    @property
    def group(self) -> tuple[str, str]:
        return kind_of(self.module), self.name

    @property
    def trait(self) -> tuple[bool, bool]:
        """Whether it filters channels one by one, and pixels one by one: what a new layer is compared by."""
        size = getattr(self.module, "kernel_size", ())
        return is_depthwise(self.module), isinstance(size, tuple) and math.prod(size) == 1


def kind_of(module: nn.Module) -> str:
    """The layer's nearest class of torch, `Conv2d`; of others, which no rule of torch's fits, their own name."""
    base = next(kind for kind in type(module).__mro__ if getattr(nn, kind.__name__, None) is kind)
    return f"own {type(module).__name__}" if base in _HOLDERS else base.__name__


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution filters every channel by itself."""
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1


def default_law(module: nn.Module, name: str) -> Law | None:
    """The law by which torch draws a parameter of a layer when it is made; None where that is not known."""
    if isinstance(module, (_ConvNd, nn.Linear)):
        return _TORCH if name in ("weight", "bias") else None
    if isinstance(module, _NORMS):
        return {"weight": _ONE, "bias": _ZERO}.get(name)
    return Law("constant", module.init) if isinstance(module, nn.PReLU) and name == "weight" else None


def _unknown(module: nn.Module, name: str) -> Law | None:
    """What a tensor is drawn by whose law the source does not show: He-normal weights, biases of zero."""
    if isinstance(module, (_ConvNd, nn.Linear)):
        return {"weight": _HE, "bias": _ZERO}.get(name)
    return default_law(module, name)


@dataclass
class Initialisation:
    """The laws of a source's tensors, and those of the top-down network's that have been asked for.

    Attributes:
        of_source: the path of a source's parameter -> its law.
        of_kind: (class of torch, parameter's name), (depthwise, pointwise) -> the law of most such tensors.
        shown: whether the source shows how its weights were drawn; None where it has none with values.
        hook: the source's own `initialise(module)`, which then draws.
        laws: the path of a top-down network's parameter -> its law.
    """

    of_source: dict[str, Law] = field(default_factory=dict)
    of_kind: dict[tuple[tuple[str, str], tuple[bool, bool] | None], Law] = field(default_factory=dict)
    shown: bool | None = None
    hook: Callable[[nn.Module], Any] | None = None
    laws: dict[str, Law] = field(default_factory=dict)

    def law(self, module: nn.Module, name: str, source: str = "", *, new: bool = False) -> Law | None:
        """The law of a layer's parameter; None where nothing is known of it.

        Args:
            module: the layer.
            name: the parameter's name in it.
            source: the path of the source's parameter that it is, or is modelled on.
            new: it is no layer of the source: a scale of zero that silences a branch is not for it.
        """
        found = self.of_source.get(source)
        if found is not None and not (new and name == "weight" and found == _ZERO):
            return found
        if not self.of_kind:
            return _unknown(module, name)
        tensor = _Tensor("", module, name, torch.empty(0))
        own, own_trait = tensor.group, tensor.trait
        for group in (own, ("Conv2d", name) if isinstance(module, _ConvNd) else own):
            for trait in (own_trait, (own_trait[0], not own_trait[1]), None):
                if (found := self.of_kind.get((group, trait))) is not None:
                    return found
        return _unknown(module, name)

    def note(self, path: str, module: nn.Module, source: str, *, new: bool = False) -> None:
        """Keep the laws of a layer at a path of the top-down network, which is the source's layer or modelled on it."""
        for inner, part in module.named_modules():
            for name, _ in part.named_parameters(recurse=False):
                given = _join(source, inner, name) if source else ""
                law = self.law(part, name, given, new=new)
                if law is not None:
                    self.laws[_join(path, inner, name)] = law

    def draw(self, path: str, module: nn.Module) -> None:
        """Give the layer at a path the values that the source's own layers start with, as its noted laws say."""
        for inner, part in module.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
            if self.hook is not None:
                self.hook(part)
                continue
            for name, value in part.named_parameters(recurse=False):
                law, fans = self.laws.get(_join(path, inner, name)), _fans(part, name)
                if law is not None and law != default_law(part, name) and (not law.fan or law.fan in fans):
                    law.draw(value, fans)


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _fans(module: nn.Module, name: str) -> Mapping[Any, float]:
    """What the deviation of a layer's parameter may follow: its own connections, a bias those of its weight."""
    value = module._parameters[name]  # not by its name, which would compute a weight that is computed
    assert value is not None
    if name == "bias" and (weight := module._parameters.get("weight")) is not None:
        fans = fans_of(weight)
        return {"in": fans["in"]} if fans else {}
    return fans_of(value, int(getattr(module, "groups", 1)) if not isinstance(module, _ConvTransposeNd) else 1)


def read_initialisation(model: nn.Module) -> Initialisation:
    """How a network draws its first values.

    By its method `initialise(module)` if it has one, which draws one layer's values, else by what its values show.
    """
    tensors = list(_tensors(model))
    hook = own_hook(model)
    if any(tensor.value.is_meta for tensor in tensors):
        return Initialisation(hook=hook)
    found = _explain(tensors)
    if hook:
        bare = {path: law for path, law in found.of_source.items() if path in _bare(tensors)}
        return replace(_of_probes(hook), of_source=bare)
    if found.shown is False and (again := _drawn_again(model, tensors)):
        bare = found.of_source
        found = _explain(again)
        found.of_source = {**bare, **found.of_source}
    names = {id(tensor.value): tensor.full_name for tensor in tensors}
    for path, value in model.named_parameters(remove_duplicate=False):
        if (law := found.of_source.get(names.get(id(value), ""))) is not None:
            found.of_source[path] = law
    return found


def shows_first_values(model: nn.Module) -> bool:
    """Whether a network's weights are as they were drawn, as far as they show it; False where it was trained."""
    tensors = list(_tensors(model))
    return not any(tensor.value.is_meta for tensor in tensors) and _explain(tensors).shown is True


def own_hook(model: nn.Module) -> Callable[[nn.Module], Any] | None:
    """The network's `initialise(module)`, if it has such a method."""
    hook = getattr(model, "initialise", None)
    return hook if callable(hook) and _takes(hook, 1) else None


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _tensors(model: nn.Module) -> Iterator[_Tensor]:
    """The floating parameters of a network with values, each under the first path that it has."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in module.named_parameters(recurse=False):
            if id(value) not in seen and value.is_floating_point() and value.numel():
                seen.add(id(value))
                yield _Tensor(path, module, name, value)


def _bare(tensors: Sequence[_Tensor]) -> set[str]:
    """The names of the parameters that are in no layer of torch."""
    return {tensor.full_name for tensor in tensors if tensor.group[0].startswith("own ")}


def _of_probes(hook: Callable[[nn.Module], Any]) -> Initialisation:
    """What a network's own `initialise(module)` does, seen on layers made for it to draw."""
    probes = nn.ModuleList(
        [
            *(nn.Conv2d(i, o, k, bias=True) for i, o, k in ((32, 64, 3), (16, 96, 3), (64, 24, 5))),
            *(nn.Conv2d(i, o, 1, bias=True) for i, o in ((128, 64), (48, 192))),
            *(nn.Conv2d(n, n, k, groups=n) for n, k in ((256, 3), (128, 5))),
            *(nn.Linear(i, o) for i, o in ((96, 200), (256, 64))),
            *(nn.ConvTranspose2d(i, o, 2) for i, o in ((32, 48), (96, 32))),
            *(nn.BatchNorm2d(32), nn.GroupNorm(4, 32), nn.LayerNorm(32)),
        ]
    )
    with own_draws():
        try:
            for probe in probes:
                hook(probe)
        except Exception:  # whatever a network's own method makes of layers that are not its own
            return Initialisation(hook=hook)
    found = _explain(list(_tensors(probes)))
    return Initialisation({}, found.of_kind, found.shown, hook)


def _drawn_again(model: nn.Module, tensors: Sequence[_Tensor]) -> list[_Tensor]:
    """The parameters of a copy that the network's own way to draw all of them, if it has one, has changed."""
    way = next((name for name in _WAYS if callable(getattr(model, name, None))), "")
    if not way:
        return []
    with contextlib.suppress(Exception), own_draws():  # whatever it needs that is not there
        again = copy.deepcopy(model)
        method = getattr(again, way)
        if _takes(method, 0):
            method()
        elif _takes(method, 1):
            again.apply(method)
        drawn = {tensor.full_name: tensor for tensor in _tensors(again)}
        pairs = [(drawn[tensor.full_name], tensor) for tensor in tensors if tensor.full_name in drawn]
        return [new for new, old in pairs if not torch.equal(new.value, old.value)]
    return []


def _explain(tensors: Sequence[_Tensor]) -> Initialisation:
    """The laws of tensors, kind by kind."""
    given = [(tensor.value, _fans(tensor.module, tensor.name)) for tensor in tensors]
    groups: dict[tuple[str, str], list[tuple[_Tensor, Sample]]] = defaultdict(list)
    for tensor, sample in zip(tensors, samples_of(given), strict=True):
        groups[tensor.group].append((tensor, sample))
    found = Initialisation()
    explained = total = norms = trained_norms = 0
    for (kind, name), members in groups.items():
        apart = kind.startswith("own ")
        laws = _laws(members, apart=apart)
        like = like_values(sample for _, sample in members) if apart else None
        for tensor, sample in members:
            law = laws.get(tensor.full_name)
            if law is not None:
                found.of_source[tensor.full_name] = law
            elif like is not None:
                found.of_source[tensor.full_name] = like
            if not apart and tensor.value.dim() > 1 and not sample.is_constant:
                total += tensor.value.numel()
                explained += tensor.value.numel() if law is not None else 0
            if isinstance(tensor.module, _NORMS):
                norms += 1
                trained_norms += law is None or not law.is_constant
        _most_of_a_kind(found, (kind, name), [(tensor, laws.get(tensor.full_name)) for tensor, _ in members])
    if total:
        found.shown = explained >= _ENOUGH * total and trained_norms <= _ENOUGH * norms
    if found.shown is False:  # a few tensors that look drawn in a network that was trained say nothing of it
        own = _bare(tensors)
        found.of_source = {path: law for path, law in found.of_source.items() if path in own}
        found.of_kind = {}
    return found


def _most_of_a_kind(
    found: Initialisation, group: tuple[str, str], members: Sequence[tuple[_Tensor, Law | None]]
) -> None:
    """The laws that new layers are drawn by: what most layers of their kind have, where any is not a silent zero."""
    by_trait: dict[tuple[bool, bool] | None, list[Law]] = defaultdict(list)
    for tensor, law in members:
        if law is not None:
            by_trait[tensor.trait].append(law)
            by_trait[None].append(law)
    for trait, laws in by_trait.items():
        loud = [law for law in laws if law != _ZERO] if group[1] == "weight" else laws
        if loud:
            found.of_kind[group, trait] = max(dict.fromkeys(loud), key=loud.count)


def _laws(members: Sequence[tuple[_Tensor, Sample]], *, apart: bool) -> dict[str, Law]:
    """The law of each tensor of one kind: the one that explains most of them, then the next for what is left."""
    laws: dict[str, Law] = {}
    rest = list(members)
    while rest:
        law, covered = _best_cover(rest, apart=apart)
        if law is None or not covered:
            break
        laws |= {tensor.full_name: law for tensor, _ in covered}
        rest = [member for member in rest if member[0].full_name not in laws]
    return laws


def _best_cover(
    members: Sequence[tuple[_Tensor, Sample]], *, apart: bool
) -> tuple[Law | None, list[tuple[_Tensor, Sample]]]:
    """The law that explains most of some tensors, and those that it explains."""
    best: tuple[Law | None, list[tuple[_Tensor, Sample]]] = (None, [])
    tried: set[Law] = set()
    for part in _parts(members):
        law = fitting_law([sample for _, sample in part], apart=apart)
        if law is None or law in tried:
            continue
        tried.add(law)
        covered = _that_fit(law, members)
        if len(covered) > len(best[1]):
            best = law, covered
        if len(covered) == len(members):
            break
    return best


def _that_fit(law: Law, members: Sequence[tuple[_Tensor, Sample]]) -> list[tuple[_Tensor, Sample]]:
    """The tensors that a law explains, one by one and together with most of those of their trait."""
    number = Counter(tensor.trait for tensor, _ in members)
    fit: dict[tuple[bool, bool], list[Sample]] = defaultdict(list)
    explained = [member for member in members if fits(law, member[1])]
    for tensor, sample in explained:
        fit[tensor.trait].append(sample)
    whole = {
        trait
        for trait, samples in fit.items()
        if law.is_constant or (2 * len(samples) > number[trait] and fits_together(law, samples))
    }
    return [member for member in explained if member[0].trait in whole]


def _parts(members: Sequence[tuple[_Tensor, Sample]]) -> Iterator[list[tuple[_Tensor, Sample]]]:
    """Parts of some tensors that may have a law of their own: all, those of a trait, of a name, each by itself."""
    yield list(members)
    constant = [member for member in members if member[1].is_constant]
    if constant and len(constant) < len(members):
        yield [member for member in members if not member[1].is_constant]
        yield constant
    for key in map(attrgetter, ("trait", "last_name", "full_name")):
        parts: dict[Any, list[tuple[_Tensor, Sample]]] = defaultdict(list)
        for member in members:
            parts[key(member[0])].append(member)
        if len(parts) > 1:
            yield from parts.values()
