"""An in-place operation that opens a stage, or stands behind a merge.

Today: it overwrites the map of the stage before, which td.features returns, or backward raises "modified by an inplace
operation".
Right: stage maps are those of the network written without in-place operations; it trains, with checkpointing too.
Why: SPEC 1.1; oracle 9.2 (in-place or not).
"""

import torch
import torch.nn.functional as F
from common import close, fill, image, stage_maps, trains, unit
from torch import nn

from td_compiler import reverse

FIRST = {
    "x.relu_()": lambda x: x.relu_(),
    "F.relu_(x)": lambda x: F.relu_(x),
    "F.relu(x, inplace)": lambda x: F.relu(x, inplace=True),
    "x += 1": lambda x: x.__iadd__(1),
    "x *= 2": lambda x: x.__imul__(2),
    "x -= 1": lambda x: x.__isub__(1),
    "x.clamp_(min=0)": lambda x: x.clamp_(min=0),
    "x.mul_(2)": lambda x: x.mul_(2),
}
PLAIN = {"x += 1": lambda x: x + 1, "x *= 2": lambda x: x * 2, "x -= 1": lambda x: x - 1, "x.mul_(2)": lambda x: x * 2}


class Block(nn.Module):
    def __init__(self, cin, cout, stride, first):
        super().__init__()
        self.a, self.b, self.first = nn.Conv2d(cin, cout, 3, stride, 1), nn.Conv2d(cout, cout, 3, 1, 1), first
        self.short = nn.Conv2d(cin, cout, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        x = self.first(x)
        return self.short(x) + self.b(F.relu(self.a(x)))


class Net(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(32, 10)
        self.blocks = nn.Sequential(
            Block(8, 8, 1, first), Block(8, 16, 2, first), Block(16, 16, 1, first), Block(16, 32, 2, first)
        )

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Summed(nn.Module):
    """Blocks that open with an in-place ReLU of a sum; merges end with a ReLU whose output backward needs."""

    def __init__(self, cin, cout, stride, first=False):
        super().__init__()
        act = nn.Identity() if first else nn.ReLU(inplace=True)
        self.body = nn.Sequential(act, nn.Conv2d(cin, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.MaxPool2d(3, stride, 1))
        self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = self.body(x)
        return y + self.short(x)


def summed():
    blocks = Summed(8, 16, 2, True), Summed(16, 16, 1), Summed(16, 32, 2), Summed(32, 32, 1)
    return nn.Sequential(unit(3, 8), *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


CASES = [(how, lambda first=first: Net(first), (3, 32, 32), {}) for how, first in FIRST.items()] + [
    ("behind a merge", summed, (3, 32, 32), {})
]


def check(label, model, td):
    x = image()
    trains(td, x)
    if label == "behind a merge":
        return
    right = reverse(Net(PLAIN.get(label, lambda x: F.relu(x))), input_size=(3, 32, 32))
    with torch.no_grad():
        for got, want in zip(stage_maps(fill(td), x), stage_maps(fill(right), x)):
            close(got, want, "the map of a stage")
    trains(td.checkpoint_stages(), x)
