"""Classes of a network's own in emitted source, and autograd functions that run layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from td_compiler import ConversionError, reverse, verify


class StrideBeforeDefaults(nn.Conv2d):
    """A convolution whose stride is a positional argument behind its kernel."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)


def test_required_arguments_behind_one_given_by_keyword_are_given_by_keyword_too() -> None:
    model = nn.Sequential(
        *(StrideBeforeDefaults(3, 8, 3, 1), nn.ReLU(), nn.MaxPool2d(2)),
        *(StrideBeforeDefaults(8, 16, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )
    assert verify(model, reverse(model, input_size=(3, 16, 16)), input_size=(3, 16, 16)).passed


class RunsLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module, *parameters: torch.Tensor) -> Any:
        return layer(x) * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, None, None


class WithFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.pool, self.classify = nn.MaxPool2d(2), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = RunsLayer.apply(self.pool(self.first(x)), self.second, *self.second.parameters())
        scores: torch.Tensor = self.classify(x.mean((2, 3)))
        return scores


def test_an_autograd_function_that_runs_layers_is_refused_by_name_and_line() -> None:
    with pytest.raises(ConversionError, match=r"RunsLayer at .*test_own_classes.py:\d+ runs layers .*Conv2d"):
        reverse(WithFunction(), input_size=(3, 16, 16))
