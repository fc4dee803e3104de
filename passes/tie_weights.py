"""Weights that are one in the source stay one where their shapes allow (SPEC 2.14)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from td_compiler.graph.states import Building, Pass

__all__ = ["TieWeights"]


class Place(NamedTuple):
    """Where a parameter stands: its path in the top-down network, what holds it, and its name there."""

    path: str
    holder: nn.Module | dict[str, torch.Tensor]
    name: str


class TieWeights(Pass[Building]):
    """Parameters of the source's layers that are one tensor there are one here, if all of them have the same shape.

    Where a width changes only some of them, those of one shape stay tied, and the report says what came apart.
    """

    def requires(self, building: Building) -> None:
        assert building.modules, "there is no layer"

    def apply(self, building: Building) -> None:
        for source, places in _places(building):
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
                building.notes.append(
                    f"One weight of shape {tuple(source.shape)} in the source has come apart, as its uses differ in"
                    f" shape here: {shapes}."
                )

    def ensures(self, building: Building) -> None:
        for _, places in _places(building):
            shapes = {_at(place).shape for place in places}
            assert len(shapes) == len({id(_at(place)) for place in places}), f"{places[0].path} is no longer tied"


def _places(building: Building) -> list[tuple[torch.Tensor, list[Place]]]:
    """The parameters of the source that stand at several places of the top-down network."""
    sources: dict[int, torch.Tensor] = {}
    places: dict[int, list[Place]] = {}
    layers = {path: layer for path, layer in building.layers.items() if layer.own and path in building.modules}
    homes = building.bottom_up.parts
    for path, layer in layers.items():
        own = homes.get(layer.source)
        made = _parameters(building.modules[path])
        for name, tensor in _parameters(own).items() if own is not None else ():
            if name in made:
                sources[id(tensor)] = tensor
                home, _, last = name.rpartition(".")
                holder = building.modules[path].get_submodule(home)
                places.setdefault(id(tensor), []).append(Place(f"{path}.{name}", holder, last))
    own_names = {
        building.own_path(name): p for name, p in building.bottom_up.model.named_parameters(remove_duplicate=False)
    }
    for path in building.parameters:
        if path in own_names:
            sources[id(own_names[path])] = own_names[path]
            places.setdefault(id(own_names[path]), []).append(Place(path, building.parameters, path))
    return [(sources[key], found) for key, found in places.items() if len(found) > 1]


def _parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """A layer's parameters by name, each under all of its names."""
    if layer._modules:
        return dict(layer.named_parameters(remove_duplicate=False))
    return {name: parameter for name, parameter in layer._parameters.items() if parameter is not None}


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
