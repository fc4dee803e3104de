"""Branches computed at a quarter of a size that four does not divide, down to a map of one pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import reverse, verify


class Calibrated(nn.Module):
    """A gate computed at a quarter of the size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv, self.low = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(inputs, 1, 3, padding=1)
        self.short = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.interpolate(self.low(F.avg_pool2d(x, 4)), size=x.shape[2:])
        return F.relu(self.conv(x * torch.sigmoid(low)) + self.short(x))


@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
@pytest.mark.parametrize("side", [28, 32])
def test_a_gate_at_a_quarter_of_the_size_is_the_blocks_own_business(side: int, filters: str) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Calibrated(8, 8, 1), Calibrated(8, 12, 2)),
        *(Calibrated(12, 16, 2), Calibrated(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )
    td = reverse(model, input_size=(3, side, side), filters=filters)
    assert td.scales == (1, 2, 4)
    assert verify(model, td, input_size=(3, side, side), filters=filters).passed


class Hourglass(nn.Module):
    """Down twice and back, corners to corners, beside a short way at every size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv, self.short = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(inputs, outputs, 1, stride)
        self.high, self.low = nn.Conv2d(outputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        half = F.max_pool2d(y, 2)
        low = F.interpolate(self.low(F.max_pool2d(half, 2)), scale_factor=2, mode="bilinear", align_corners=True)
        up = F.interpolate(self.high(half) + low, scale_factor=2, mode="bilinear", align_corners=True)
        return F.relu(y * torch.sigmoid(up) + self.short(x))


@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
def test_an_hourglass_returns_to_every_size_that_it_had(filters: str) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Hourglass(8, 8, 1), nn.MaxPool2d(2), Hourglass(8, 12, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )
    td = reverse(model, input_size=(3, 32, 32), filters=filters)
    assert verify(model, td, input_size=(3, 32, 32), filters=filters).passed
    assert td.eval()(torch.rand(1, 3, 37, 29)).shape == (1, 5)
