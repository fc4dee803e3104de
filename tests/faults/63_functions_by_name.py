"""Functions of the user's own behind torch.fx.wrap, among them a gate that is called attention.

Today: refused for "attention" in its name.
Right: what it does decides, not its name: a gate for every channel converts.
Why: SPEC 1.3; oracle 9.2 (other names).
"""

import torch
from common import Plain, image, same
from torch import fx, nn

from td_compiler import reverse


def channel_attention(x):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def channel_gate(x):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


fx.wrap("channel_attention")
fx.wrap("channel_gate")


class Named(nn.Module):
    def forward(self, x):
        return channel_attention(x)


class Attention(nn.Module):
    """A module of that name without any."""

    def forward(self, x):
        return channel_gate(x)


class Inline(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


CASES = [
    ("a function", lambda: Plain(last=Named()), (3, 32, 32), {}),
    ("a module", lambda: Plain(last=Attention()), (3, 32, 32), {}),
]


def check(label, model, td):
    same(td, reverse(Plain(last=Inline()), input_size=(3, 32, 32)), image())
