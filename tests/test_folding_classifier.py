"""Networks that classify by a convolution and flatten what it makes: for images of one size alone."""

from __future__ import annotations

import torch
from torch import nn

from td_compiler import reverse, verify


class ConvolutionClassifies(nn.Module):
    """Four times as many scores for images of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8)),
        )
        self.classify = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classify(self.body(x))
        return scores.view(scores.size(0), -1)


def test_scores_of_other_sizes_are_no_yardstick() -> None:
    model = ConvolutionClassifies()
    td = reverse(model, input_size=(3, 16, 16))
    assert td(torch.randn(2, 3, 33, 31)).shape == (2, 5)
    assert verify(model, td, input_size=(3, 16, 16)).passed
