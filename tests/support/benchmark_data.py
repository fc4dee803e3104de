"""Tiny data sets in the formats of the real ones, and networks small enough to train in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.training.recipes import Recipe

CLASSES = ("a", "b", "c")

NETWORKS = '''
from torch import nn


class Net(nn.Sequential):
    """Two stages without norms, for images (N, 1, 28, 28)."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
            nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
        )


class Normed(nn.Sequential):
    """The same with norms and dropout."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4), nn.Dropout(0.2),
            nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
        )
'''

RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=0.05)


def write_mnist(root: Path, train: int = 320, test: int = 100) -> Path:
    """MNIST's four files with bars in ten places, the label being the place; returns the root."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        images, labels = bars(count)
        header = b"\x00\x00\x08\x03" + np.array([count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        header = b"\x00\x00\x08\x01" + np.array([count], dtype=">i4").tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.to(torch.uint8).numpy().tobytes())
    return root


def bars(count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 28, 28), uint8, of noise and a bright bar; the labels say which two rows it is in."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 10
    images = torch.randint(0, 60, (count, 28, 28), generator=generator, dtype=torch.uint8)
    for row in (2, 3):
        images[torch.arange(count), 2 * labels + row] = 255
    return images, labels


def write_folder(root: Path, side: int = 32, each: int = 6) -> Path:
    """`root/{train,test}/{a,b,c}/N.png`: a colour for each class, the number in the corner; returns the root."""
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                image = np.zeros((side, side, 3), dtype=np.uint8)
                image[:, :, label] = 200
                image[0, 0] = number
                Image.fromarray(image).save(folder / f"{number}.png")
    return root


def machine(out: Path, data_root: Path, **more: object) -> Machine:
    """A CPU without progress bars."""
    return Machine(out, data_root, device="cpu", progress=False, **more)
