"""Convolutions that run along the channels of a map, as nn.Conv3d on (N, 1, C, H, W) does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from td_compiler import ConversionError, reverse, verify


class AlongChannels(nn.Module):
    """A window slides over the channels: each half of them is made of all."""

    def __init__(self, side: int) -> None:
        super().__init__()
        pad = side // 2
        self.conv = nn.Conv3d(1, 2, (8, side, side), stride=(2, 1, 1), padding=(3, pad, pad), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.size()
        return self.conv(x.unsqueeze(dim=1)).view(batch, channels, height, width)


def network(side: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), AlongChannels(side), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )


@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
def test_a_convolution_along_the_channels_keeps_the_map_and_its_weights(filters: str) -> None:
    model = network(side=1)
    td = reverse(model, filters=filters, input_size=(3, 16, 16))
    assert td.scales == (1, 2, 4)
    assert verify(model, td, filters=filters, input_size=(3, 16, 16)).passed
    assert {tuple(weight.shape) for weight in td.parameters() if weight.dim() == 5} == {(2, 1, 8, 1, 1)}


def test_one_that_mixes_pixels_as_well_is_refused_by_name() -> None:
    with pytest.raises(ConversionError, match=r"Conv3d at '4.conv' mixes channels and pixels"):
        reverse(network(side=3), input_size=(3, 16, 16))
