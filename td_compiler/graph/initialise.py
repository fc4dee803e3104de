"""How one layer's weights are drawn (SPEC 4): the kinds of initialisation that the papers use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

__all__ = ["initialise_glorot", "initialise_he"]


def initialise_he(module: nn.Module) -> None:
    """Draw a convolution or linear layer He-normal (zero bias), set a norm to identity (SPEC 4, the ResNets)."""
    _initialise(module, nn.init.kaiming_normal_)


def initialise_glorot(module: nn.Module) -> None:
    """Draw a convolution or linear layer Glorot-uniform (zero bias), set a norm to identity (SPEC 4, LeNet and NIN)."""
    _initialise(module, nn.init.xavier_uniform_)


def _initialise(module: nn.Module, draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
    if isinstance(module, (_ConvNd, nn.Linear)):
        draw(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
        module.reset_parameters()
