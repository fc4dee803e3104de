"""Lazy layers that have seen no image yet.

Today: a bare RuntimeError about uninitialized parameters.
Right: refused by path with the way out (run it once on images), or converts.
Why: README, what cannot be converted raises ConversionError.
"""

import torch
from common import Plain, image, same
from torch import nn

from td_compiler import reverse


class Lazy(Plain):
    def __init__(self, seen):
        super().__init__()
        self.b[0], self.fc = nn.LazyConv2d(16, 3, padding=1, bias=False), nn.LazyLinear(10)
        if seen:
            self(torch.rand(2, 3, 32, 32))


CASES = [("not yet run", lambda: Lazy(False), (3, 32, 32), {}), ("run once", lambda: Lazy(True), (3, 32, 32), {})]
EXPECT = {"not yet run": "either"}
WORDS = {"not yet run": ("b.0", ("run", "forward", "call"))}


def check(label, model, td):
    same(td, reverse(Plain(), input_size=(3, 32, 32)), image())
