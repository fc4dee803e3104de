"""What a network is trained for: its loss, and the score that says how good it is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from td_compiler.benchmarks.data.images import Images, Stream

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["TASKS", "Loss", "Task", "distilled", "task_of"]

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """What a network is trained for.

    Attributes:
        loss: from the training data, the loss of scores (N, K) or (N, K, H, W) against labels (N,) or (N, H, W).
        metric: from the number of classes, the score, a number from 0 to 1 of the same arguments.
    """

    loss: Callable[[Images | Stream], Loss]
    metric: Callable[[int], Metric]


def task_of(name: str) -> Task:
    """The task of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in TASKS:
        for module in _PROVIDERS:
            importlib.import_module(module)
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}, only {', '.join(TASKS)}.")
    return TASKS[name]


_TEMPERATURE = 4.0


def distilled(loss: Tensor, scores: Tensor, taught: Tensor) -> Tensor:
    """A loss, half of it by a teacher's scores (Hinton et al. 2015): T^2 times the divergence at temperature T = 4.

    Args:
        loss: of the labels, a scalar.
        scores, taught: of the network and of its teacher, (N, K) or (N, K, H, W).
    """
    ours, theirs = (functional.log_softmax(each.float() / _TEMPERATURE, dim=1) for each in (scores, taught.detach()))
    divergence = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()
    return 0.5 * loss + 0.5 * _TEMPERATURE**2 * divergence


def _accuracy(classes: int) -> Any:
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(classes, average="micro")


TASKS: dict[str, Task] = {"classification": Task(loss=lambda data: functional.cross_entropy, metric=_accuracy)}
# Modules that add rows to the table when they are imported.
_PROVIDERS = ("td_compiler.benchmarks.data.meshes",)
