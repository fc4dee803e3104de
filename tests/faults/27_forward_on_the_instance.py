"""forward chosen or replaced on the instance.

Today: NotImplementedError, or the class's forward is traced: another network, silently.
Right: what model(x) runs.
Why: SPEC 1.1, capture sees what is computed.
"""

import types

import torch.nn.functional as F
from common import Plain, image, same
from torch import nn

from td_compiler import reverse


class Chosen(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Plain()
        self.a, self.b, self.c, self.fc = self.net.a, self.net.b, self.net.c, self.net.fc
        del self.net
        self.forward = self.classify

    def classify(self, x):
        x = F.max_pool2d(self.b(F.max_pool2d(self.a(x), 2)), 2)
        return self.fc(self.c(x).mean((2, 3)))


def replaced():
    net = Plain(last=nn.Conv2d(32, 32, 3, padding=1))
    net.forward = types.MethodType(
        lambda self, x: self.fc(
            self.pool(self.c(self.mid(F.max_pool2d(self.b(F.max_pool2d(self.a(x), 2)), 2)))).flatten(1)
        ),
        net,
    )
    return net


def block_replaced():
    net = Plain(last=nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)))
    net.last.forward = lambda x: x
    return net


CASES = [
    ("chosen in __init__", Chosen, (3, 32, 32), {}),
    ("replaced", replaced, (3, 32, 32), {}),
    ("of a block", block_replaced, (3, 32, 32), {}),
]


def check(label, model, td):
    same(td, reverse(Plain(), input_size=(3, 32, 32)), image())
