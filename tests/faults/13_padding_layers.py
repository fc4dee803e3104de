"""Padding layers and functions before convolutions without padding of their own.

Today: nn.CircularPad2d grows the map inside a stage (10x10 where 8x8 should be); reflection, replication and
F.pad(mode="circular") silently become padding with zeros; nn.ZeroPad2d and padding_mode= are right.
Right: one size within a stage, as padding_mode="circular" gives; other paddings likewise.
Why: SPEC 2.4.
"""

import torch.nn.functional as F
from common import Plain, image, same, stages
from torch import nn

from td_compiler import reverse


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3)

    def forward(self, x):
        return self.conv(F.pad(x, (1, 1, 1, 1), mode="circular"))


PAD = {
    "CircularPad2d": nn.CircularPad2d,
    "ReflectionPad2d": nn.ReflectionPad2d,
    "ReplicationPad2d": nn.ReplicationPad2d,
    "ZeroPad2d": nn.ZeroPad2d,
}
MODE = {
    "CircularPad2d": "circular",
    "F.pad": "circular",
    "ReflectionPad2d": "reflect",
    "ReplicationPad2d": "replicate",
    "ZeroPad2d": "zeros",
}
CASES = [
    (name, lambda pad=pad: Plain(last=nn.Sequential(pad(1), nn.Conv2d(32, 32, 3))), (3, 32, 32), {})
    for name, pad in PAD.items()
]
CASES += [("F.pad", lambda: Plain(last=Around()), (3, 32, 32), {})]
CASES += [("CircularPad2d, plain form", CASES[0][1], (3, 32, 32), {"fast": False})]


def check(label, model, td):
    x = image()
    sides = [side for _, side in stages(td, x)]
    assert sides == [8, 16, 32], f"the stages' maps have sides {sides}, should be [8, 16, 32]"
    mode = MODE[label.split(", ")[0]]
    same(td, reverse(Plain(last=nn.Conv2d(32, 32, 3, padding=1, padding_mode=mode)), input_size=(3, 32, 32)), x)
