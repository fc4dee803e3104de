"""The papers' bottom-up networks (SPEC 4): LeNetFC, NIN-light, NIN, ResNet32 and its kin, ResNet18-light.

Images are (N, C, H, W); the networks return logits (N, num_classes): the papers' softmax belongs to the loss.

Two attributes make up a protocol that the compiler reads from any model, not only from these:

- `input_size: tuple[int, int, int]`, the (C, H, W) that the network is made for;
- `initialise: Callable[[nn.Module], None]`, which draws the weights of one layer anew in the network's own kind (here
  He-normal or Glorot-uniform weights, zero biases, norms at identity) and leaves other modules alone. Layers that the
  top-down network adds are initialised by it.

Strided layers pad as Keras' "same" does at even sizes, on the high side, because the authors' networks do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from td_compiler.errors import ConversionError
from td_compiler.graph.initialise import initialise_glorot, initialise_he

if TYPE_CHECKING:
    from td_compiler.weights import Pretrained

__all__ = [
    "ZOO",
    "ConvUnit",
    "PlainNet",
    "PreActBlock",
    "PreActResNet",
    "lenet_fc",
    "nin",
    "nin_light",
    "pretrained",
    "resnet",
    "resnet18_light",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]


class ConvUnit(nn.Module):
    """A conv-norm-activation triple that keeps the size: (N, in, H, W) to (N, out, H, W), kernel size odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(self.norm(self.conv(x)))
        return out


class PlainNet(nn.Module):
    """A network without shortcuts or fully connected layers: features, then a 1x1 unit per class and its average.

    Args:
        features: the layers up to the head, images (N, C, H, W) to a map (N, width, h, w).
        width: the filters of the features' last layer.
        num_classes: the number of logits.
        input_size: the (C, H, W) that the network is made for.
    """

    initialise = staticmethod(initialise_glorot)

    def __init__(self, features: nn.Sequential, width: int, num_classes: int, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.input_size = input_size
        self.features = features
        self.head = ConvUnit(width, num_classes, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.apply(self.initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.flatten(self.pool(self.head(self.features(images))))
        return logits


def lenet_fc(*, num_classes: int = 10, in_channels: int = 1) -> PlainNet:
    """LeNetFC for 28x28 images: LeNet with a 1x1 convolution and global averaging in place of its linear layers."""
    features = nn.Sequential(
        ConvUnit(in_channels, 6, 5),
        nn.MaxPool2d(2),
        ConvUnit(6, 16, 5),
        nn.MaxPool2d(2),
        ConvUnit(16, 32, 3),
    )
    return PlainNet(features, 32, num_classes, (in_channels, 28, 28))


def nin_light(*, num_classes: int = 10, in_channels: int = 1) -> PlainNet:
    """NIN-light for 28x28 images: Network in Network with about a quarter of its filters."""
    return _nin((48, 40, 24), 48, num_classes, (in_channels, 28, 28))


def nin(*, num_classes: int = 10, in_channels: int = 3) -> PlainNet:
    """Network in Network for 32x32 images (Lin et al. 2013)."""
    return _nin((192, 160, 96), 192, num_classes, (in_channels, 32, 32))


def _nin(first: tuple[int, int, int], width: int, num_classes: int, input_size: tuple[int, int, int]) -> PlainNet:
    """NIN with the given widths in its first stage and one width after it."""
    features = nn.Sequential(
        ConvUnit(input_size[0], first[0], 5),
        ConvUnit(first[0], first[1], 1),
        ConvUnit(first[1], first[2], 1),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.Dropout(0.5),
        ConvUnit(first[2], width, 5),
        ConvUnit(width, width, 1),
        ConvUnit(width, width, 1),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.Dropout(0.5),
        ConvUnit(width, width, 3),
        ConvUnit(width, width, 1),
    )
    return PlainNet(features, width, num_classes, input_size)


class PreActBlock(nn.Module):
    """A pre-activation basic block (He et al. 2016): (N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride)).

    The stride is 1 or 2. Where the shape changes, a 1x1 projection of the pre-activated input, of the same stride,
    replaces the identity shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        # Two on the high side serve even sizes as one would, and give odd sizes the projection's ceil(size / 2).
        self.pad = None if stride == 1 else nn.ZeroPad2d((0, 2, 0, 2))
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1 if stride == 1 else 0)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        identity = stride == 1 and in_channels == out_channels
        self.projection = None if identity else nn.Conv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act1(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(out)
        if self.pad is not None:
            out = self.pad(out)
        out = self.conv1(out)
        out = self.conv2(self.act2(self.norm2(out)))
        return out + shortcut


class PreActResNet(nn.Module):
    """A pre-activation ResNet: stem, groups of blocks that each halve the map but the first, norm, average, linear.

    Args:
        widths: the filters of each group.
        blocks: the number of blocks in a group.
        num_classes: the number of logits.
        input_size: the (C, H, W) that the network is made for.
        stem_pool: whether a max-pooling follows the stem's convolution.
    """

    initialise = staticmethod(initialise_he)

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        num_classes: int,
        input_size: tuple[int, int, int],
        stem_pool: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.stem = nn.Conv2d(input_size[0], widths[0], 3, padding=1)
        self.stem_pool = nn.MaxPool2d(3, stride=2, ceil_mode=True) if stem_pool else None
        self.groups: list[str] = []
        previous = widths[0]
        for index, width in enumerate(widths):
            first = PreActBlock(previous, width, stride=1 if index == 0 else 2)
            rest = [PreActBlock(width, width) for _ in range(blocks - 1)]
            self.groups.append(f"group{index + 1}")
            self.add_module(self.groups[-1], nn.Sequential(first, *rest))
            previous = width
        self.norm = nn.BatchNorm2d(previous)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)
        self.apply(self.initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        if self.stem_pool is not None:
            x = self.stem_pool(x)
        for name in self.groups:
            x = self.get_submodule(name)(x)
        logits: torch.Tensor = self.fc(self.flatten(self.pool(self.act(self.norm(x)))))
        return logits


def resnet(depth: int, *, num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """The pre-activation ResNet for 32x32 images of any depth 6n + 2: three groups of n blocks, 16, 32 and 64 filters.

    Raises:
        ConversionError: if the depth is not 6n + 2 with n >= 1.
    """
    if depth < 8 or depth % 6 != 2:
        below = max(depth - (depth - 2) % 6, 8)
        raise ConversionError(f"A ResNet has 6n + 2 layers, not {depth}: take a depth such as {below} or {below + 6}.")
    return PreActResNet((16, 32, 64), (depth - 2) // 6, num_classes, (in_channels, 32, 32))


def resnet20(*, num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """ResNet20 for 32x32 images."""
    return resnet(20, num_classes=num_classes, in_channels=in_channels)


def resnet32(*, num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """ResNet32 for 32x32 images, the papers' residual network for CIFAR-10."""
    return resnet(32, num_classes=num_classes, in_channels=in_channels)


def resnet44(*, num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """ResNet44 for 32x32 images."""
    return resnet(44, num_classes=num_classes, in_channels=in_channels)


def resnet56(*, num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """ResNet56 for 32x32 images."""
    return resnet(56, num_classes=num_classes, in_channels=in_channels)


def resnet110(*, num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """ResNet110 for 32x32 images."""
    return resnet(110, num_classes=num_classes, in_channels=in_channels)


def resnet18_light(*, num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """ResNet18-light for 128x128 images, the papers' network for Imagenette: half of ResNet18's filters."""
    return PreActResNet((32, 64, 128, 256), 2, num_classes, (in_channels, 128, 128), stem_pool=True)


ZOO: dict[str, Callable[..., PlainNet | PreActResNet]] = {
    factory.__name__: factory
    for factory in (lenet_fc, nin_light, nin, resnet20, resnet32, resnet44, resnet56, resnet110, resnet18_light)
}


def pretrained(name: str, *, data: str, where: str | Path | None = None, sha256: str | None = None) -> Pretrained:
    """A trained network, such as `pretrained("nin_light_td", data="fashion-mnist")`: images in [0, 1] to scores.

    Arguments and errors are those of :func:`td_compiler.weights.pretrained`, where the files are described, too.
    """
    from td_compiler import weights  # imports the compiler, which networks have no use for

    return weights.pretrained(name, data=data, where=where, sha256=sha256)
