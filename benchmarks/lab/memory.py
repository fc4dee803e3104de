"""What a forward pass keeps in memory, and what a call takes of a GPU's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["CudaPeak", "cuda_growth_at_peak", "saved_bytes"]


class CudaPeak:
    """The most that torch has of a GPU's memory from here on, above what it has now; starts the device's peak anew."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
        self.device, self.before = device, torch.cuda.memory_allocated(device)

    @property
    def growth(self) -> int:
        """In bytes."""
        return torch.cuda.max_memory_allocated(self.device) - self.before


def cuda_growth_at_peak(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch has of a GPU's memory at most during a call, above those that it had before."""
    peak = CudaPeak(device)
    call()
    return peak.growth


def saved_bytes(network: nn.Module, images: Tensor | list[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass: what it is given, and no parameters.

    It is given images (N, C, H, W), or a pyramid's levels.
    """
    given = images if isinstance(images, list) else [images]
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {level.data_ptr(): level.nbytes for level in given}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = network(images)  # alive until all is counted, so that no address is taken twice
    total = sum(kept.values())
    del scores
    return total
