"""A source behind torch.compile, whole or in part, or behind DataParallel.

Today: NotImplementedError or RuntimeError of torch.compile; network.compile() and DataParallel are right.
Right: unwrapped: the network that it compiles, under its own names.
Why: SPEC 1.1; Python's wrapping is its own business.
"""

import torch
from common import Plain, image, same
from torch import nn

from td_compiler import reverse


def part():
    net = Plain()
    net.c = torch.compile(net.c, backend="eager")
    return net


def in_place():
    net = Plain()
    net.compile(backend="eager")
    return net


CASES = [
    ("whole", lambda: torch.compile(Plain(), backend="eager"), (3, 32, 32), {}),
    ("a part", part, (3, 32, 32), {}),
    ("in place", in_place, (3, 32, 32), {}),
    ("DataParallel", lambda: nn.DataParallel(Plain()), (3, 32, 32), {}),
]


def check(label, model, td):
    same(td, reverse(Plain(), input_size=(3, 32, 32)), image())
    if label in ("whole", "in place"):
        names = [name for name, _ in td.named_parameters()]
        assert "fc.weight" in names, f"names are not the network's own: {names[-2:]}"
