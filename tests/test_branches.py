"""Branches of a block that are computed at a smaller size and come back (SPEC 1.2, 2.8)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import reverse, verify
from td_compiler.options import Filters


class Low(nn.Module):
    """A block whose gate is computed at half the size, its way down and its way back written in one way or another."""

    def __init__(self, way: str, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.gate = nn.Conv2d(inputs, outputs, 3, stride * 2 if way == "one stride" else stride, 1)
        self.down, self.up = nn.Conv2d(inputs, inputs, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")
        self.short = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.way == "strides":
            low = F.interpolate(self.gate(self.down(x)), size=y.shape[2:])
        elif self.way == "layers":
            low = self.up(self.gate(F.avg_pool2d(x, 2)))
        else:
            low = F.interpolate(self.gate(F.max_pool2d(x, 2)), scale_factor=2.0, mode="nearest")
        return F.relu(y * torch.sigmoid(low) + self.short(x))


class Net(nn.Module):
    def __init__(self, block: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(block(8, 8, 1), block(8, 12, 2), block(12, 12, 1), block(12, 16, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("way", ["pooling", "strides", "layers"])
@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
def test_a_branch_at_half_the_size_stays_at_half_the_size(way: str, filters: Filters) -> None:
    td = reverse(Net(lambda *sizes: Low(way, *sizes)), input_size=(3, 32, 32), filters=filters).eval()
    assert td.scales == (1, 2, 4)
    read = [node for segment in td.segments for node in segment.graph.nodes if str(node.target).endswith(".gate")]
    assert len(read) == 4
    for size in (32, 37):
        assert [maps.shape[-1] for maps in td.stage_maps(td.pyramid(torch.rand(1, 3, size, size)))] == [
            -(-size // 4),
            -(-size // 2),
            size,
        ]


@pytest.mark.parametrize("way", ["pooling", "layers"])
def test_verify_finds_nothing_wrong(way: str) -> None:
    found = verify(Net(lambda *sizes: Low(way, *sizes)), input_size=(3, 32, 32))
    assert found.passed, str(found)
