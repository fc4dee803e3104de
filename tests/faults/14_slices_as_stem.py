"""A space-to-depth stem made of four strided slices (as in public detectors' backbones).

Today: the finest map has half the image's size; `verify` sees it, `reverse` does not.
Right: scales (1, 2, 4, 8), last map of the image's size, as many parameters as with nn.PixelUnshuffle.
Why: SPEC 1.3 (strided slices and space-to-depth are downsampling), 2.10.
"""

import torch
from common import image, parameters, stages, trains
from torch import nn

from td_compiler import reverse


class Slices(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(12, width, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))


def make(stem):
    return nn.Sequential(
        stem,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


CASES = [
    (filters, lambda: make(Slices(16)), (3, 32, 32), {"filters": filters})
    for filters in ("mirror", "uniform", "reversed")
]


def check(label, model, td):
    x = image()
    assert tuple(td.scales) == (1, 2, 4, 8), f"scales {td.scales}"
    sides = [side for _, side in stages(td, x)]
    assert sides == [4, 8, 16, 32], f"the stages' maps have sides {sides}, should be [4, 8, 16, 32]"
    trains(td, x)
    right = parameters(
        reverse(
            make(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, padding=1))),
            input_size=(3, 32, 32),
            filters=label,
        )
    )
    assert parameters(td) == right, f"{parameters(td)} parameters, with PixelUnshuffle {right}"
