"""Lay maps out channels last where convolutions run faster so."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from td_compiler.graph.notes import facts, origin_of
from td_compiler.graph.states import Building, Pass

__all__ = ["ChooseLayout"]

# Measured on CPUs: channels last gains with filters by the dozen. It loses with few filters, and training loses much
# where convolutions are grouped.
_FEWEST_CHANNELS = 16
_SHARE = 0.9


class ChooseLayout(Pass[Building]):
    """Weights of convolutions, and so the maps that they put out, are laid out channels last where it pays.

    So they are, too, where the source's are. It changes no number but by rounding, and a state_dict not at all. Where
    the network's own code may take views all stays as it is, for a view may need numbers that lie one after the other.
    """

    def requires(self, building: Building) -> None:
        assert building.modules, "there is no layer"

    def apply(self, building: Building) -> None:
        plain = all(p.dim() != 5 for module in building.modules.values() for p in module.parameters())
        building.channels_last = plain and (
            _is_channels_last(building.bottom_up.model) or (_pays(building) and not _takes_views(building))
        )
        if building.channels_last and building.options.fast:
            for module in building.modules.values():
                module.to(memory_format=torch.channels_last)

    def ensures(self, building: Building) -> None:
        pass


def _is_channels_last(model: nn.Module) -> bool:
    kernels = [p for p in model.parameters() if p.dim() == 4]
    return any(not p.is_contiguous() for p in kernels) and all(
        p.is_contiguous(memory_format=torch.channels_last) for p in kernels
    )


def _takes_views(building: Building) -> bool:
    """Whether the network's own code may take views of a map or a kernel, which need not have its channels last."""
    for stage in building.stages:
        for node in stage.graph.nodes:
            if node.op == "call_method" and node.target in {"view", "view_as", "as_strided"}:
                read = origin_of(node).all_input_nodes[0]
                if facts(read).size not in {None, (1, 1)}:
                    return True
    kernels = (module for module in building.modules.values() if any(p.dim() == 4 for p in module.parameters()))
    return any(not type(module).forward.__module__.startswith(("torch.", "td_compiler.")) for module in kernels)


def _pays(building: Building) -> bool:
    """Whether nearly all products are those of convolutions with many channels, and none is grouped."""
    wide = total = 0
    for conv, pixels in _convolutions(building):
        if conv.groups > 1:
            return False
        products = conv.out_channels * conv.in_channels * math.prod(conv.kernel_size) * pixels
        total += products
        wide += products if min(conv.in_channels, conv.out_channels) >= _FEWEST_CHANNELS else 0
    return wide >= _SHARE * total > 0


def _convolutions(building: Building) -> Iterator[tuple[nn.Conv2d, int]]:
    """The convolutions of the stages, each with the number of pixels of its stage's map."""
    for stage in building.stages:
        pixels = math.prod(building.map_size(stage.scale))
        for node in stage.graph.find_nodes(op="call_module"):
            module = building.modules[str(node.target)]
            if isinstance(module, nn.Conv2d):
                yield module, pixels
