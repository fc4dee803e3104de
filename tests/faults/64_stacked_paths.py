"""Paths put on an axis of their own and averaged, as in fractal networks and ensembles of branches.

Today: refused, no rule for stack.
Right: the same network as with a sum and a factor.
Why: SPEC 1.1; oracle 9.2.
"""

import torch
from common import Resnet, image, same
from torch import nn

from td_compiler import reverse


class Paths(nn.Module):
    def __init__(self, cin, cout, stride, join="mean"):
        super().__init__()
        self.a, self.b, self.join = nn.Conv2d(cin, cout, 3, stride, 1), nn.Conv2d(cin, cout, 1, stride), join
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        if self.join == "mean":
            y = torch.stack([a, b]).mean(0)
        elif self.join == "sum":
            y = torch.stack([a, b], dim=1).sum(dim=1) * 0.5
        else:
            y = (a + b) * 0.5
        return torch.relu(self.norm(y))


CASES = [
    (
        f"{join}, {filters}",
        lambda join=join: Resnet(lambda *sizes: Paths(*sizes, join)),
        (3, 32, 32),
        {"filters": filters},
    )
    for join in ("mean", "sum")
    for filters in ("mirror", "uniform")
]


def check(label, model, td):
    same(
        td,
        reverse(Resnet(lambda *sizes: Paths(*sizes, "add")), input_size=(3, 32, 32), filters=label.split(", ")[1]),
        image(),
    )
