"""Blocks that are torch.jit.ScriptModules, activations behind @torch.jit.script, a scripted network.

Today: "the network refuses images ...; give another input_size", which is untrue, or a bare RuntimeError.
Right: a scripted function converts (its module may stay whole); a script module converts or is refused by its path.
Why: SPEC 1.1; a message says what is the matter and what helps.
"""

import torch
import torch.nn.functional as F
from common import Plain, image, same
from torch import nn

from td_compiler import reverse


@torch.jit.script
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


class Swish(nn.Module):
    def forward(self, x):
        return swish(x)


class Scripted(torch.jit.ScriptModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3, padding=1)

    @torch.jit.script_method
    def forward(self, x):
        return torch.relu(self.conv(x))


class Called(Plain):
    def forward(self, x):
        return self.fc(self.pool(swish(self.maps(x))).flatten(1))


class Functional(Plain):
    def forward(self, x):
        return self.fc(self.pool(F.silu(self.maps(x))).flatten(1))


CASES = [
    ("function in a module", lambda: Plain(last=Swish()), (3, 32, 32), {}),
    ("function in the network", Called, (3, 32, 32), {}),
    ("script module", lambda: Plain(last=Scripted()), (3, 32, 32), {}),
    ("scripted network", lambda: torch.jit.script(Plain()), (3, 32, 32), {}),
]
EXPECT = {"script module": "either", "scripted network": "either"}
WORDS = {"script module": ("'last'", "script"), "scripted network": ("script",)}
UNWANTED = ("give another input_size",)


def check(label, model, td):
    right = {
        "function": Functional,
        "script module": lambda: Plain(last=nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())),
        "scripted network": Plain,
    }["function" if "function" in label else label]
    same(td, reverse(right(), input_size=(3, 32, 32)), image())
