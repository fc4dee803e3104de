"""Trains a network and its top-down network on Fashion-MNIST (or MNIST), for as long each, and compares them.

    python examples/train_fashion_mnist.py --data-root DATA --minutes 3
    python examples/train_fashion_mnist.py --data-root DATA --download --network zoo:nin_light --steps 500

The recipe is the papers' (SGD, Nesterov momentum 0.9, batch 128, learning rate 0.1, divided by 10 after 50 % and 80 %
of the training) with a short linear warm-up; --minutes makes the same schedule fit into a time.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.table import Table
from torch import nn

from td_compiler import ConversionError, reverse
from td_compiler.options import Filters
from td_compiler.sources.names import load_source

DATASETS = {"fashion-mnist": torchvision.datasets.FashionMNIST, "mnist": torchvision.datasets.MNIST}
IMAGE_SIZE = (1, 28, 28)
BATCH = 128
PEAK_RATE = 0.1


@dataclass
class Split:
    """Images (N, 1, 28, 28), float32 in [0, 1], and labels (N,), int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


def load_split(dataset: str, root: Path, train: bool, limit: int | None, download: bool) -> Split:
    """The first `limit` images of the training or the test set."""
    try:
        data = DATASETS[dataset](str(root), train=train, download=download)
    except RuntimeError as error:
        raise SystemExit(f"no {dataset} under {root}: give its folder with --data-root, or --download it") from error
    return Split(data.data[:limit].unsqueeze(1).float() / 255, data.targets[:limit])


def learning_rate(progress: float) -> float:
    """The rate at a point of the training, 0 to 1: warm-up over the first 5 %, then two steps down."""
    warm_up = min(1.0, (progress + 0.005) / 0.05)
    return PEAK_RATE * warm_up * (0.1 if progress >= 0.5 else 1.0) * (0.1 if progress >= 0.8 else 1.0)


def train(model: nn.Module, data: Split, steps: int | None, minutes: float, console: Console, name: str) -> int:
    """Train for a number of steps, or for a time; the number of steps taken."""
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_RATE, momentum=0.9, nesterov=True)
    model.train()
    start, step, progress = time.monotonic(), 0, 0.0
    order = torch.randperm(len(data.labels))
    while progress < 1:
        batch = order[:BATCH]
        order = order[BATCH:] if len(order) >= 2 * BATCH else torch.randperm(len(data.labels))
        optimizer.param_groups[0]["lr"] = learning_rate(progress)
        loss = F.cross_entropy(model(data.images[batch]), data.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        seconds = time.monotonic() - start
        progress = step / steps if steps else seconds / (60 * minutes)
        if step % 20 == 0 or progress >= 1:
            console.print(f"{name:10} step {step:5}  {seconds:5.0f} s  loss {loss.item():.3f}", highlight=False)
    return step


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """The share of images that the network classifies rightly."""
    model.eval()
    batches = zip(data.images.split(4 * BATCH), data.labels.split(4 * BATCH), strict=True)
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / len(data.labels)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="the folder of torchvision's data sets")
    parser.add_argument("--dataset", choices=DATASETS, default="fashion-mnist")
    parser.add_argument("--network", default="zoo:resnet32", help="a network for 1x28x28 images (default: %(default)s)")
    parser.add_argument("--filters", nargs="+", choices=get_args(Filters), default=["mirror"])
    parser.add_argument("--minutes", type=float, default=3.0, help="training time of each network (default: 3)")
    parser.add_argument("--steps", type=int, help="training steps of each network, instead of a time")
    parser.add_argument("--train-images", type=int, metavar="N", help="train on the first N images")
    parser.add_argument("--test-images", type=int, metavar="N", help="test on the first N images")
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is not there")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main(given: argparse.Namespace) -> None:
    """Train a network and its top-down network, for as long each, and print their test accuracies side by side."""
    console = Console()
    train_data = load_split(given.dataset, given.data_root, True, given.train_images, given.download).to(given.device)
    test_data = load_split(given.dataset, given.data_root, False, given.test_images, given.download).to(given.device)

    torch.manual_seed(given.seed)
    try:
        source = load_source(given.network, {"in_channels": 1}).model.to(given.device)
        networks = {"bottom-up": source}
        for arrangement in given.filters:
            networks[arrangement] = reverse(source, filters=arrangement, input_size=IMAGE_SIZE, init="fresh")
    except ConversionError as error:
        raise SystemExit(str(error)) from error

    table = Table("network", "parameters", "steps", "test accuracy", title=f"{given.network} on {given.dataset}")
    for name, model in networks.items():
        torch.manual_seed(given.seed)
        taken = train(model, train_data, given.steps, given.minutes, console, name)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        table.add_row(name, f"{parameters:,}", str(taken), f"{100 * accuracy(model, test_data):.2f} %")
    console.print(table)


if __name__ == "__main__":
    main(options())
