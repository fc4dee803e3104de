"""A module with control flow on values, kept whole, behind the first convolution of a network without stem.

Today: refused, "Tensor.item() cannot be called on meta tensors": the copy of the unit forgets that it is a leaf.
Right: converts, as it does deeper in a stage.
Why: SPEC 1.1, modules that cannot be captured stay leaves.
"""

import torch.nn.functional as F
from common import Plain, image, same
from torch import nn

from td_compiler import leaf, reverse


@leaf
class Guarded(nn.Module):
    """The map itself, after a look at its values."""

    def forward(self, x):
        if x.abs().max() > 1e6:
            return x.clamp(-1e6, 1e6)
        return x


class Without(Guarded):
    def forward(self, x):
        return x


class Inherited(Guarded):
    """A subclass of a leaf is one too."""


class Early(Plain):
    def __init__(self, kind):
        super().__init__()
        self.guard = kind()

    def forward(self, x):
        x = F.max_pool2d(self.guard(self.a(x)), 2)
        return self.fc(self.pool(self.c(F.max_pool2d(self.b(x), 2))).flatten(1))


class Between(nn.Module):
    """Between convolution and norm of the first unit, which entries copy."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.guard, self.norm, self.rest = (
            nn.Conv2d(3, 8, 3, 1, 1, bias=False),
            kind(),
            nn.BatchNorm2d(8),
            Plain(),
        )
        self.rest.a = nn.Identity()

    def forward(self, x):
        return self.rest(F.relu(self.norm(self.guard(self.conv(x)))))


CASES = [
    ("behind the first unit", lambda: Early(Guarded), (3, 32, 32), {}),
    ("inside the first unit", lambda: Between(Guarded), (3, 32, 32), {}),
    ("deep", lambda: Plain(last=Guarded()), (3, 32, 32), {}),
    ("a subclass", lambda: Early(Inherited), (3, 32, 32), {}),
]


def check(label, model, td):
    same(td, reverse(Plain(), input_size=(3, 32, 32)), image())
