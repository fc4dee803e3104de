"""The authors' top-down networks written out by hand: a witness beside their outputs, and what speed is held against.

Plain PyTorch, one class per family, from SPEC 4 and the paper alone: nothing of the compiler is used.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["HANDWRITTEN", "handwritten"]

# (kernel size, width) of every convolution of every stage, fine to coarse, and the image's channels (SPEC 4).
PLAIN = {
    "lenet_fc": (1, [[(5, 6)], [(5, 16)], [(3, 32)]]),
    "nin_light": (1, [[(5, 48), (1, 40), (1, 24)], [(5, 48), (1, 48), (1, 48)], [(3, 48), (1, 48)]]),
    "nin": (3, [[(5, 192), (1, 160), (1, 96)], [(5, 192), (1, 192), (1, 192)], [(3, 192), (1, 192)]]),
}


def triple(inputs: int, width: int, kernel: int) -> nn.Sequential:
    """Convolution, norm (eps as in the reference outputs), ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width, eps=1e-5), nn.ReLU()
    )


class PlainTopDown(nn.Module):
    """LeNetFC and the NINs, coarse to fine."""

    def __init__(self, name: str, filters: str) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5) if name.startswith("nin") else nn.Identity()
        channels, stages = PLAIN[name]
        kernels = [[k for k, _ in stage] for stage in reversed(stages)]
        widths = [[w for _, w in stage] for stage in (stages if filters == "reversed" else reversed(stages))]
        if filters == "uniform":
            common = sorted(stage[0][1] for stage in stages)[(len(stages) - 1) // 2]
            widths = [[common] * len(stage) for stage in widths]
        self.bodies = nn.ModuleList()
        self.adapt = nn.ModuleList()
        self.entries = nn.ModuleList()
        self.merges = nn.ModuleList()
        last = channels
        for i, (stage, native) in enumerate(zip(widths, kernels, strict=True)):
            if i:
                first = stage[0]
                self.adapt.append(triple(last, first, 1) if last != first else nn.Identity())
                self.entries.append(triple(channels, first, native[0]))
                self.merges.append(triple(2 * first, first, 3))
                last = first
            body = nn.Sequential()
            for j, width in enumerate(stage):
                body.append(triple(last, width, native[0] if j == 0 else 1))
                last = width
            self.bodies.append(body)
        self.head = triple(last, 10, 1)

    def forward(self, levels: list[torch.Tensor]) -> torch.Tensor:
        x = self.bodies[0](levels[-1])
        for i, image in enumerate(reversed(levels[:-1])):
            x = F.interpolate(self.adapt[i](x), scale_factor=2, mode="nearest")
            e = self.entries[i](image)
            x = self.bodies[i + 1](self.drop(self.merges[i](torch.cat([x + e, e], 1))))
        return self.head(x).mean((2, 3))


class PreAct(nn.Module):
    """A pre-activation block; `grow` upsamples by 2 before its first convolution and after its 1x1 projection."""

    def __init__(self, inputs: int, width: int, grow: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.projection = nn.Conv2d(inputs, width, 1) if inputs != width else None
        self.grow = 2 if grow else 1

    def up(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=self.grow, mode="nearest") if self.grow > 1 else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.norm1(x))
        shortcut = self.projection(a) if self.projection is not None else x
        a = self.conv1(self.up(a))
        return self.conv2(F.relu(self.norm2(a))) + self.up(shortcut)


class ResNetTopDown(nn.Module):
    """ResNet32 coarse to fine: three groups of five blocks."""

    def __init__(self, filters: str) -> None:
        super().__init__()
        widths = {"mirror": [64, 32, 16], "uniform": [32, 32, 32], "reversed": [16, 32, 64]}[filters]
        self.entries = nn.ModuleList(nn.Conv2d(3, w, 3, padding=1) for w in widths)
        self.first = nn.Sequential(*(PreAct(widths[0], widths[0]) for _ in range(5)))
        pairs = list(itertools.pairwise(widths))
        self.transitions = nn.ModuleList(PreAct(a, b, grow=True) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2 * b) for _, b in pairs)
        self.merges = nn.ModuleList(nn.Conv2d(2 * b, b, 3, padding=1) for _, b in pairs)
        self.bodies = nn.ModuleList(nn.Sequential(*(PreAct(b, b) for _ in range(4))) for _, b in pairs)
        self.norm, self.fc = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], 10)

    def forward(self, levels: list[torch.Tensor]) -> torch.Tensor:
        x = self.first(self.entries[0](levels[-1]))
        for i, image in enumerate(reversed(levels[:-1])):
            x, e = self.transitions[i](x), self.entries[i + 1](image)
            x = self.merges[i](F.relu(self.norms[i](torch.cat([x + e, e], 1))))
            x = self.bodies[i](x)
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


HANDWRITTEN = (*PLAIN, "resnet32")


def handwritten(name: str, filters: str) -> nn.Module:
    """The top-down network of SPEC 4's `name`; takes the pyramid's levels, finest first."""
    return ResNetTopDown(filters) if name == "resnet32" else PlainTopDown(name, filters)
