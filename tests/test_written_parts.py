"""Item assignment by a number, and autograd functions whose results' sizes are read (what public networks do)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from td_compiler import reverse, verify


class Written(nn.Module):
    """One channel is scaled, another set."""

    def __init__(self, *, by_number: bool) -> None:
        super().__init__()
        self.by_number = by_number
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.pool, self.classify = nn.MaxPool2d(2), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.pool(self.first(x).relu())).relu()
        if self.by_number:
            x[:, 0] = x[:, 0] * 2
        else:
            x = torch.cat([x[:, :1] * 2, x[:, 1:]], 1)
        scores: torch.Tensor = self.classify(x.mean((2, 3)))
        return scores


def test_a_channel_written_by_its_number_is_the_network_with_a_concatenation() -> None:
    networks = [reverse(Written(by_number=way), input_size=(3, 16, 16)).eval() for way in (True, False)]
    networks[1].load_state_dict(networks[0].state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(networks[0](images), networks[1](images))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


class SizeOfResult(nn.Module):
    """The size of what an autograd function made shapes a view."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3))
        self.classify = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = Doubled.apply(self.body(x).mean((2, 3), keepdim=True))
        scores: torch.Tensor = self.classify(x.view(x.size(0), -1))
        return scores


def test_the_size_of_an_autograd_functions_result_is_a_size() -> None:
    model = SizeOfResult()
    assert verify(model, reverse(model, input_size=(3, 16, 16)), input_size=(3, 16, 16)).passed


class DoubledInTraining(nn.Module):
    """An autograd function and a dropout that run in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.pool, self.drop, self.classify = nn.MaxPool2d(2), nn.Dropout(0.9), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.pool(self.first(x).relu())).relu()
        if self.training:
            x = self.drop(Doubled.apply(x))
        scores: torch.Tensor = self.classify(x.mean((2, 3)))
        return scores


def test_layers_and_functions_of_training_alone_run_in_training() -> None:
    model = DoubledInTraining()
    td = reverse(model, input_size=(3, 16, 16))
    assert verify(model, td, input_size=(3, 16, 16)).passed
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(td.eval()(images), td(images))
    assert not torch.equal(td.train()(images), td(images))
