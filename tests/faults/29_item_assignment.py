"""Writing into a part of a map.

Today: TypeError "'ValueProxy' object does not support item assignment", without module or line.
Right: the same as written with torch.cat; at the least a ConversionError with file and line that says so.
Why: SPEC 1.1, oracle 9.2.
"""

import torch
from common import Plain, image, same
from torch import nn

from td_compiler import reverse


class Narrow(nn.Module):
    """A branch twice as wide, to whose first half the input is added."""

    def __init__(self, how):
        super().__init__()
        self.wide, self.back, self.how = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 32, 1), how

    def forward(self, x):
        y, c = self.wide(x), x.shape[1]
        if self.how == "added":
            y[:, :c] += x
        elif self.how == "set":
            y[:, :c] = y[:, :c] + x
        else:
            y = torch.cat([y[:, :c] + x, y[:, c:]], 1)
        return self.back(y)


class Zeroed(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "zeroed":
            x = x.clone()
            x[:, :4] = 0
            return x
        return torch.cat([x[:, :4] * 0, x[:, 4:]], 1)


CASES = [
    ("added", lambda: Plain(last=Narrow("added")), (3, 32, 32), {}),
    ("set", lambda: Plain(last=Narrow("set")), (3, 32, 32), {}),
    ("zeroed", lambda: Plain(last=Zeroed("zeroed")), (3, 32, 32), {}),
]
EXPECT, WORDS = "either", ("29_item_assignment.py:", "torch.cat")


def check(label, model, td):
    plain = Zeroed("cat") if label == "zeroed" else Narrow("cat")
    same(td, reverse(Plain(last=plain), input_size=(3, 32, 32)), image())
