"""Tensors kept as plain attributes of a module, or in a list.

Today: refused with "give another input_size", which cannot help.
Right: converts as if they were buffers, or is refused with the attribute's name and the advice to register a buffer.
Why: SPEC 1.1.
"""

import torch
from common import Plain, image, same
from torch import nn

from td_compiler import reverse

MEAN = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)


class Attribute(Plain):
    def __init__(self):
        super().__init__()
        self.shift = MEAN.clone()

    def forward(self, x):
        return super().forward(x - self.shift)


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = [torch.tensor(0.5), torch.tensor(2.0)]

    def forward(self, x):
        return x * self.shift[1] + self.shift[0]


class Literal(nn.Module):
    def forward(self, x):
        return x * 2.0 + 0.5


CASES = [
    ("before the first unit", Attribute, (3, 32, 32), {}),
    ("inside", lambda: Plain(last=Inside()), (3, 32, 32), {}),
]
EXPECT, WORDS = "either", ("shift", "register_buffer")


def check(label, model, td):
    x = image()
    if label == "inside":
        same(td, reverse(Plain(last=Literal()), input_size=(3, 32, 32)), x)
    else:
        same(td, reverse(Plain(), input_size=(3, 32, 32)), x, x - MEAN)
