"""Activation checkpointing: keep what a stage reads, compute the rest again when gradients are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from td_compiler.network.segments import Segment

__all__ = ["StageKey", "chosen_stages", "run_checkpointed"]

StageKey = str | int | tuple[int, int]


def chosen_stages(stages: Sequence[Segment], choice: bool | Iterable[StageKey]) -> frozenset[str]:
    """The names of the chosen stages: all for True, none for False, else those of the given names or scales.

    Raises:
        ValueError: if there is no stage of a name or scale.
    """
    if isinstance(choice, bool):
        return frozenset(stage.name for stage in stages if choice)
    names: dict[StageKey, str] = {stage.scale: stage.name for stage in stages}
    names |= {stage.name: stage.name for stage in stages}
    wanted = [choice] if isinstance(choice, str) else list(choice)
    unknown = [key for key in wanted if key not in names]
    if unknown:
        raise ValueError(f"There is no stage {unknown[0]!r}, only {', '.join(map(repr, names))}.")
    return frozenset(names[key] for key in wanted)


def run_checkpointed(method: Callable[..., Any], network: nn.Module, values: list[torch.Tensor]) -> Any:
    """What `method(*values)` returns, without what its backward pass needs: that is computed again then.

    Random numbers are drawn alike both times. Buffers of the network, such as the running statistics of batch norms,
    are updated once.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _on_copies_of_buffers(network)

    # By position: where the random numbers of a GPU are to be kept is told from these arguments alone.
    if torch.compiler.is_compiling():  # a compiler computes again what gradients need, and no update is among that
        return checkpoint(method, *values, use_reentrant=False)
    return checkpoint(method, *values, use_reentrant=False, context_fn=contexts)


@contextmanager
def _on_copies_of_buffers(network: nn.Module) -> Iterator[None]:
    """A context in which layers update copies of their buffers."""
    owners = {module: dict(module._buffers) for module in network.modules() if module._buffers}
    for module, buffers in owners.items():
        module._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in owners.items():
            module._buffers.update(buffers)
