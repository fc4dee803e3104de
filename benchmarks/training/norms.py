"""Running statistics of batch norms: their momentum; taken anew after trainings that are too short for them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["fresh_statistics", "set_momentum"]


def set_momentum(network: nn.Module, momentum: float) -> None:
    """Set the momentum of all batch norms, torch's sense: the share of a new batch; plain means stay."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.momentum is not None:
            module.momentum = momentum


@torch.no_grad()
def fresh_statistics(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The running statistics of a trained network's batch norms as means over batches (Wu and Johnson 2021, section 3).

    Norms that stay in eval mode when the network is put into training mode keep theirs; torch's own
    `torch.optim.swa_utils.update_bn` would leave those empty.

    Args:
        network: the trained network; its statistics are changed.
        batches: of training images (N, C, H, W), as the network takes them.

    Returns:
        the buffers of these norms by their paths.
    """
    network.train()
    norms = {path: each for path, each in network.named_modules() if isinstance(each, _BatchNorm) and each.training}
    momenta = {path: norm.momentum for path, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    for images in batches if norms else ():
        network(images)
    for path, norm in norms.items():
        norm.momentum = momenta[path]
    return {f"{path}.{name}": buffer for path, norm in norms.items() for name, buffer in norm.named_buffers()}
