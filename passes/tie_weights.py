"""Weights that are one in the source stay one where their shapes allow (SPEC 2.14)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from td_compiler.graph.states import Conversion, Pass

__all__ = ["TieWeights"]


class Place(NamedTuple):
    """Where a parameter stands: its path in the top-down network, what holds it, and its name there."""

    path: str
    holder: nn.Module | dict[str, torch.Tensor]
    name: str


class TieWeights(Pass):
    """Parameters of the source's layers that are one tensor there are one here, if all of them have the same shape.

    Where a width changes only some of them, those of one shape stay tied, and the report says what came apart.
    """

    def requires(self, conversion: Conversion) -> None:
        assert conversion.modules, "BuildLayers has not run"

    def apply(self, conversion: Conversion) -> None:
        for source, places in _places(conversion):
            by_shape: dict[torch.Size, list[Place]] = {}
            for place in places:
                by_shape.setdefault(_at(place).shape, []).append(place)
            for together in by_shape.values():
                for place in together[1:]:
                    _set(place, _at(together[0]))
            if len(by_shape) > 1:
                shapes = "; ".join(
                    f"{' and '.join(place.path for place in together)} {tuple(shape)}"
                    for shape, together in by_shape.items()
                )
                conversion.notes.append(
                    f"One weight of shape {tuple(source.shape)} in the source has come apart, as its uses differ in"
                    f" shape here: {shapes}."
                )

    def ensures(self, conversion: Conversion) -> None:
        for _, places in _places(conversion):
            shapes = {_at(place).shape for place in places}
            assert len(shapes) == len({id(_at(place)) for place in places}), f"{places[0].path} is no longer tied"


def _places(conversion: Conversion) -> list[tuple[torch.Tensor, list[Place]]]:
    """The parameters of the source that stand at several places of the top-down network."""
    sources: dict[int, torch.Tensor] = {}
    places: dict[int, list[Place]] = {}
    layers = {path: layer for path, layer in conversion.layers.items() if layer.own and path in conversion.modules}
    homes = dict(conversion.model.named_modules(remove_duplicate=False))
    for path, layer in layers.items():
        own = homes.get(layer.source)
        made = dict(conversion.modules[path].named_parameters(remove_duplicate=False))
        for name, tensor in own.named_parameters(remove_duplicate=False) if own is not None else ():
            if name in made:
                sources[id(tensor)] = tensor
                home, _, last = name.rpartition(".")
                holder = conversion.modules[path].get_submodule(home)
                places.setdefault(id(tensor), []).append(Place(f"{path}.{name}", holder, last))
    own_names = {conversion.own_path(name): p for name, p in conversion.model.named_parameters(remove_duplicate=False)}
    for path in conversion.parameters:
        if path in own_names:
            sources[id(own_names[path])] = own_names[path]
            places.setdefault(id(own_names[path]), []).append(Place(path, conversion.parameters, path))
    return [(sources[key], found) for key, found in places.items() if len(found) > 1]


def _at(place: Place) -> torch.Tensor:
    tensors = place.holder if isinstance(place.holder, dict) else place.holder._parameters
    tensor = tensors[place.name]
    assert tensor is not None
    return tensor


def _set(place: Place, tensor: torch.Tensor) -> None:
    if isinstance(place.holder, dict):
        place.holder[place.name] = tensor
    else:
        assert isinstance(tensor, nn.Parameter)
        place.holder._parameters[place.name] = tensor
