"""Training by Lightning: a network, a recipe, a checkpoint after every epoch."""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from td_compiler.benchmarks.data.datasets import opened
from td_compiler.benchmarks.data.images import Images, as_float
from td_compiler.benchmarks.lab.files import Damaged, read_checked, with_checksum, write_synced
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.memory import CudaPeak, saved_bytes
from td_compiler.benchmarks.training.batches import augmented, batches, seed_of, shuffled, split
from td_compiler.benchmarks.training.recipes import Recipe, RecipeError
from td_compiler.benchmarks.training.tasks import Loss, distilled, task_of
from td_compiler.benchmarks.training.training import Builder, Training, trained, untrained

__all__ = ["Diverged", "fit", "one_cycle", "plateau"]

_CHECKPOINT, _BEFORE = "last.ckpt", "before.ckpt"  # of the last epoch, and of the one before


class Diverged(RuntimeError):
    """A training whose loss or weights are no longer finite."""


class _Checkpoints(CheckpointIO):
    """Checkpoints with a checksum, written beside their place, synced and renamed; the last one but one stays, too."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises OSError if it cannot be written; the earlier ones are as they were then."""
        content, target = io.BytesIO(), Path(path)
        torch.save(checkpoint, content)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name("next.ckpt")
        write_synced({fresh: with_checksum(content.getvalue())})
        if target.exists():
            os.replace(target, target.with_name(_BEFORE))
        os.replace(fresh, target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises Damaged."""
        content = io.BytesIO(read_checked(Path(path)))
        checkpoint: dict[str, Any] = torch.load(content, map_location=map_location or "cpu", weights_only=True)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _newest(folder: Path) -> Path | None:
    """The last checkpoint that is as it was written; those that are not are named on standard error."""
    for path in (folder / _CHECKPOINT, folder / _BEFORE):
        try:
            if path.exists():
                read_checked(path)
                return path
        except (Damaged, OSError) as error:
            print(f"{error}; the training goes on from the epoch before, or from its start", file=sys.stderr)
    return None


def fit(
    training: Training, machine: Machine, folder: Path, build: Builder | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train a network, from the last checkpoint in a folder if there is one.

    Args:
        training, machine: what to train, where.
        folder: of the checkpoint.
        build: as in :func:`td_compiler.benchmarks.training.training.trained`.

    Returns:
        the trained network's state, and what `Trained` says of the training beside it.

    Raises:
        KeyboardInterrupt: if the user interrupts; the checkpoint stays.
        Diverged: if loss or weights are no longer finite.
        RecipeError: if batches cannot be divided evenly among the processes.
        OSError: if the checkpoint cannot be written.
    """
    if training.recipe.batch_size % machine.world_size:
        size, processes = training.recipe.batch_size, machine.world_size
        raise RecipeError(f"Batches of {size} images cannot be divided among {processes} processes: set batch_size.")
    module = _Module(training, machine, build)
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and logging
        trainer = _trainer(training.recipe, machine, folder)
        _run(trainer, module, _newest(folder))
    # What DDP's processes know comes back through the checkpoint; so does what an interrupted training did.
    saved = _Checkpoints().load_checkpoint(folder / _CHECKPOINT)
    state = {name.removeprefix("network."): value for name, value in saved["state_dict"].items()}
    history = saved["history"]
    return state, {
        "seconds_per_epoch": median(epoch["seconds"] for epoch in history),
        "peak_memory": saved["peak_memory"],
        "history": history,
    }


def _trainer(recipe: Recipe, machine: Machine, folder: Path) -> pl.Trainer:
    # By Lightning's default a version number is appended to a file that exists; here each epoch replaces the last.
    keep = ModelCheckpoint(folder, Path(_CHECKPOINT).stem, save_on_train_epoch_end=True, enable_version_counter=False)
    shown = machine.shows_progress
    callbacks: list[Callback] = [keep, *([TQDMProgressBar(refresh_rate=20, leave=False)] if shown else [])]
    cuda = machine.torch_device.type == "cuda"
    strategy = "auto"
    if machine.world_size > 1:
        strategy = "ddp" if "LOCAL_RANK" in os.environ else "ddp_spawn"  # torchrun starts the processes itself
    one_gpu = cuda and machine.devices == 1 and machine.torch_device.index is not None and strategy == "auto"
    return pl.Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=[machine.torch_device.index] if one_gpu else machine.devices,
        num_nodes=machine.nodes,
        strategy=strategy,
        precision=machine.precision,  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        callbacks=callbacks,
        logger=False,
        plugins=[_Checkpoints()],
        enable_progress_bar=shown,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        sync_batchnorm=cuda and machine.world_size > 1,
        benchmark=cuda,
        default_root_dir=folder,
    )


def _run(trainer: pl.Trainer, module: _Module, checkpoint: Path | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:  # how Lightning ends on Ctrl-C
        raise KeyboardInterrupt from stop
    finally:
        if handler is not signal.getsignal(signal.SIGINT):
            signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's messages on what hardware it found."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Module(pl.LightningModule):
    """One training.

    Everything random in an epoch is drawn from a seed of that epoch: a resumed training equals an undisturbed one.
    """

    network: nn.Module
    loss: Loss
    score: Metric

    def __init__(self, training: Training, machine: Machine, build: Builder | None) -> None:
        super().__init__()
        self.training_plan, self.machine, self.build = training, machine, build
        self.recipe = training.recipe
        self.history: list[dict[str, float]] = []
        self.peak_memory = 0
        self.warm = False  # after the first step in this process, which takes longer
        # torchmetrics leaves NaN out of a mean, unless told not to.
        self.mean_loss, self.mean_held_out_loss = (MeanMetric(nan_strategy="disable") for _ in range(2))

    def setup(self, stage: str) -> None:
        """Read the data, in each process for itself."""
        plan = self.training_plan
        data = opened(plan.data, self.machine, train=True, limit=plan.train_images)
        if data.labels.ndim > 1 and self.recipe.augment != "none":
            raise RecipeError(f"augment={self.recipe.augment} moves the images and not the classes of their pixels.")
        task = task_of(plan.task)
        self.loss, self.score = task.loss(data), task.metric(len(data.classes))
        # In a tuple, since modules of a module go into its checkpoints.
        self.teacher: tuple[nn.Module, ...] = ()
        if plan.teacher and plan.helper is not None:
            teacher = trained(plan.helper, self.machine).network.requires_grad_(False)
            self.teacher = (teacher.to(self.trainer.strategy.root_device),)
        self.kept, self.held_out = split(len(data), self.recipe.held_out, plan.run)
        self.crop = data.crop
        device = self.trainer.strategy.root_device
        self.cuda_peak = CudaPeak(device) if device.type == "cuda" else None
        self.data = data.to(device) if isinstance(data, Images) else data

    def configure_model(self) -> None:
        """Make the network, in each process for itself: one of a user's file cannot be sent to another process."""
        if not hasattr(self, "network"):
            self.network = untrained(self.training_plan, self.machine, self.build)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD with Nesterov momentum; weight decay on kernels alone."""
        recipe = self.recipe
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)
        if recipe.schedule == "plateau":
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau(optimizer, recipe.learning_rate), "monitor": "held_out_loss"},
            }
        steps = recipe.epochs * len(self._batches(epoch=0))
        schedule: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "one-cycle":
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(steps))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        milestones = [round(milestone * steps) for milestone in recipe.milestones]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _batches(self, epoch: int) -> list[Tensor]:
        size, run = self.recipe.batch_size, self.training_plan.run
        return shuffled(self.kept, size, run, epoch, self.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> Any:
        """The current epoch's batches."""
        return batches(self.data, self._batches(self.current_epoch), self.machine.workers)

    def val_dataloader(self) -> Any:
        """The held-out images, this process's share."""
        share = self.held_out[self.global_rank :: self.trainer.world_size]
        return batches(self.data, share.split(4 * self.recipe.batch_size), self.machine.workers) if len(share) else []

    def on_fit_start(self) -> None:
        """On a CPU, find what a training step holds in memory."""
        if self.device.type == "cpu" and not self.peak_memory:
            images, _ = next(iter(self.train_dataloader()))
            self.peak_memory = _step_memory(self.network, self._prepared(images))

    def on_train_epoch_start(self) -> None:
        """Seed the epoch and start its clock."""
        torch.manual_seed(seed_of(self.training_plan.run, self.current_epoch, purpose=3 + 2 * self.global_rank))
        self.untimed, self.started = 0, self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch of images (N, C, H, W) and labels."""
        images, labels = batch
        prepared = self._prepared(images)
        scores = self.network(prepared)
        loss = self.loss(scores, labels)
        for teacher in self.teacher:
            loss = distilled(loss, scores, teacher(prepared))
        self.mean_loss.update(loss.detach())
        return loss

    def _prepared(self, images: Tensor) -> Tensor:
        return augmented(as_float(images), self.recipe.augment, self.crop)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock after the last batch; start it anew after the first one in this process."""
        if self.trainer.is_last_batch:
            steps = batch_idx + 1
            self.seconds = (self._now() - self.started) * steps / (steps - self.untimed)
        elif not self.warm:
            self.untimed, self.started = 1, self._now()
        self.warm = True

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Loss and score of held-out images."""
        images, labels = batch
        scores = self.network(augmented(as_float(images), "none", self.crop))
        self.mean_held_out_loss.update(self.loss(scores, labels), weight=len(images))
        self.score.update(scores, labels)

    def on_validation_epoch_end(self) -> None:
        """Tell the schedule the loss."""
        self.log("held_out_loss", self.mean_held_out_loss.compute())

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history; the checkpoint is written right after.

        Raises:
            Diverged: if loss or weights are no longer finite.
        """
        metrics: dict[str, Metric] = {"loss": self.mean_loss}
        if len(self.held_out):
            metrics |= {"held_out_loss": self.mean_held_out_loss, "held_out_score": self.score}
        figures = {name: float(metric.compute()) for name, metric in metrics.items()}
        wild = [name for name, figure in figures.items() if not math.isfinite(figure)]
        wild += [name for name, weight in self.network.named_parameters() if not weight.isfinite().all()]
        if wild:
            raise Diverged(
                f"epoch {self.current_epoch + 1}: {wild[0]} is no longer a finite number; lower the learning rate,"
                " e.g. --recipe learning_rate=0.01"
            )
        self.history.append({**figures, "seconds": round(self.seconds, 4)})
        for metric in metrics.values():
            metric.reset()
        if self.cuda_peak is not None:
            held = self.data.images.nbytes if isinstance(self.data, Images) else 0
            self.peak_memory = max(self.peak_memory, self.cuda_peak.growth - held)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history and the memory."""
        checkpoint["history"], checkpoint["peak_memory"] = self.history, self.peak_memory

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from them."""
        self.history, self.peak_memory = checkpoint["history"], checkpoint["peak_memory"]


def one_cycle(steps: int) -> Callable[[int], float]:
    """The rate at each of so many steps, as a share of its peak: up over a fifth of them, then down to 0, linearly.

    torch's `OneCycleLR` divides by zero where the whole training has five steps.
    """
    warm = max(1, round(steps / 5))
    return lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def plateau(optimizer: torch.optim.Optimizer, rate: float) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """The authors' schedule for segmentation: a fifth after 5 epochs without a fall, down to a tenth of the rate.

    Keras, which they used, lowers the rate after so many epochs, torch after one more than its patience.
    """
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.2, patience=4, threshold_mode="abs", min_lr=rate / 10
    )


def _step_memory(network: nn.Module, images: Tensor) -> int:
    """Bytes that a training step on images (N, C, H, W) holds.

    These are parameters, their gradients and momentum, the images, and what the backward pass needs of the forward.
    """
    trial = copy.deepcopy(network)  # a forward pass in training mode changes the statistics of norms
    with torch.random.fork_rng(devices=[]):
        kept = saved_bytes(trial, images)
    return kept + sum(p.nbytes * (3 if p.requires_grad else 1) for p in trial.parameters())
