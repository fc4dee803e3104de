"""Images normalised inside forward, as networks under attack are wrapped.

Today: converts silently to another network: the finest stage has the image's 3 channels, or the normalisation meets a
merged map and never an image; `verify` passes.
Right: the network without it, which sees normalised images: same parameters, td(x) = right((x - mean) / std).
Why: SPEC 1.0, the prologue is no part of any stage and runs once, on the image, before the pyramid.
"""

import torch
from common import Plain, Resnet, Strided, image, same
from torch import nn

from td_compiler import reverse

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)


class Normalised(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.register_buffer("mean", MEAN.clone())
        self.register_buffer("std", STD.clone())
        self.net = net

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


CASES = [
    ("without a stem", lambda: Normalised(Plain()), (3, 32, 32), {}),
    ("with a stem", lambda: Normalised(Resnet()), (3, 32, 32), {}),
    ("with a strided stem", lambda: Normalised(Strided()), (3, 32, 32), {}),
    ("with a strided stem, uniform", lambda: Normalised(Strided()), (3, 32, 32), {"filters": "uniform"}),
    (
        "in a Sequential, reversed",
        lambda: nn.Sequential(Normalised(nn.Identity()), Plain()),
        (3, 32, 32),
        {"filters": "reversed"},
    ),
]


def check(label, model, td):
    options = {"filters": label.split(", ")[-1]} if ", " in label else {}
    plain = Strided() if "strided" in label else Resnet() if label == "with a stem" else Plain()
    x = image()
    same(td, reverse(plain, input_size=(3, 32, 32), **options), x, (x - MEAN) / STD)
