"""Modules that hand on lists, tuples, None or dictionaries, each sum still a cut point.

Today: lists inside an nn.Sequential: the body is taken for one unit, silently (1 or 2 reductions), or refused: "hands
on two tensors or more at every point".
Right: the same network as with plain blocks; the Python between modules is its own business.
Why: SPEC 1.1, 1.2; oracle 9.2.
"""

from functools import reduce

from common import Block, Resnet, image, same
from torch import nn

from td_compiler import reverse


class Both(nn.Sequential):
    def forward(self, x):
        return [module(x) for module in self]


class Add(nn.Module):
    def forward(self, xs):
        return reduce(lambda a, b: a + b, xs)


def table(*sizes):
    """Block, put together from lists."""
    block = Block(*sizes)
    branch = nn.Sequential(block.conv1, block.norm1, nn.ReLU(), block.conv2, block.norm2)
    return nn.Sequential(Both(branch, block.short), Add(), nn.ReLU())


class Pair(Block):
    """Takes and returns (x, nothing), as networks with an optional second path do."""

    def forward(self, pair):
        x, other = pair if isinstance(pair, tuple) else (pair, None)
        assert other is None
        return super().forward(x), other


class Named(Block):
    def forward(self, state):
        return {"x": super().forward(state["x"]), "depth": state["depth"] + 1}


class Pairs(Resnet):
    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(self.stem(x))))[0].mean((2, 3)))


class States(Resnet):
    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1({"x": self.stem(x), "depth": 0})))["x"].mean((2, 3)))


CASES = [
    ("lists", lambda: Resnet(table), (3, 32, 32), {}),
    ("pairs with None", lambda: Pairs(Pair), (3, 32, 32), {}),
    ("dictionaries", lambda: States(Named), (3, 32, 32), {}),
]


def check(label, model, td):
    same(td, reverse(Resnet(), input_size=(3, 32, 32)), image())
