"""Layers that look up what to do by the number of dimensions of what comes in, as libraries of axis patterns do.

Today: KeyError "Proxy(getattr_1)" in the head.
Right: converts (a layer without parameters may stay whole): the same as flatten or mean.
Why: SPEC 1.1.
"""

from common import Plain, image, same
from torch import nn

from td_compiler import reverse


class Rearrange(nn.Module):
    """Works a pattern out once for every number of dimensions."""

    def __init__(self, pattern):
        super().__init__()
        left, right = (side.split() for side in pattern.split("->"))
        self.plans = {len(left): ("flatten", (1,)) if "1" in left else ("mean", ((2, 3),)), len(left) + 1: None}

    def forward(self, x):
        name, arguments = self.plans[x.ndim]
        return getattr(x, name)(*arguments)


CASES = [
    (
        "squeeze",
        lambda: Plain(pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), Rearrange("b c 1 1 -> b c"))),
        (3, 32, 32),
        {},
    ),
    ("mean", lambda: Plain(pool=Rearrange("b c h w -> b c")), (3, 32, 32), {}),
]


def check(label, model, td):
    for batch, size in ((2, 32), (3, 40)):
        same(td, reverse(Plain(), input_size=(3, 32, 32)), image(size=size, batch=batch))
