"""One small network of each family, for what must hold whatever the network."""

from __future__ import annotations

import functools
from collections.abc import Callable

import timm
import torch
import torchvision.models as tv
from torch import nn

from td_compiler import TopDownNet, reverse, zoo

__all__ = ["FAMILIES", "converted"]


def vgg() -> nn.Module:
    model = tv.VGG(tv.vgg.make_layers([8, "M", 16, "M", 16], batch_norm=True), num_classes=10)
    model.classifier = nn.Linear(16 * 7 * 7, 10)  # after VGG's own pooling to 7x7
    return model


def mobilenet() -> nn.Module:
    return tv.MobileNetV2(10, 0.35, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]])


def efficientnet() -> nn.Module:
    config = functools.partial(tv.efficientnet.MBConvConfig, width_mult=1.0, depth_mult=1.0)
    blocks = [config(1, 3, 1, 16, 8, 1), config(4, 5, 2, 8, 16, 2)]
    return tv.EfficientNet(blocks, dropout=0.2, stochastic_depth_prob=0.0, num_classes=10, last_channel=64)


def regnet() -> nn.Module:
    return tv.RegNet(tv.regnet.BlockParams([1, 2], [8, 16], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25), num_classes=10)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet32": lambda: zoo.resnet(8),
    "resnet18": lambda: tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10),
    "vgg11_bn": vgg,
    "mobilenet_v2": mobilenet,
    "densenet121": lambda: tv.DenseNet(8, (2, 2), 16, num_classes=10),
    "shufflenet_v2": lambda: tv.ShuffleNetV2([2, 1, 1], [8, 16, 32, 64, 64], num_classes=10),
    "efficientnet_b0": efficientnet,
    "convnext_atto": lambda: timm.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=10
    ),
    "regnet_y": regnet,
}


@functools.cache
def converted(name: str) -> TopDownNet:
    """The top-down network of a family, in eval mode; it is shared: copy it before changing it."""
    torch.manual_seed(0)
    return reverse(FAMILIES[name](), input_size=(3, 64, 64)).eval()
