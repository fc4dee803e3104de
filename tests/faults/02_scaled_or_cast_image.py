"""Images scaled, cast, clamped or laid out anew at the start of forward.

Today: converts silently to another network, whose classifier reads 3 features behind a stem; `verify` passes.
Right: the network without it, run on the prepared image.
Why: SPEC 1.0.
"""

import torch
from common import Plain, Strided, image, same
from torch import nn

from td_compiler import reverse

PREPARE = {
    "divided by 255": lambda x: x / 255,
    "twice minus one": lambda x: 2 * x - 1,
    "cast to float": lambda x: x.float(),
    "cast and divided": lambda x: x.to(torch.float32).div(255.0),
    "clamped": lambda x: x.clamp(0.2, 0.8),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "by its own mean": lambda x: x - x.mean((2, 3), keepdim=True),
}


class Prepared(nn.Module):
    def __init__(self, net, how):
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x):
        return self.net(PREPARE[self.how](x))


NETS = {"Strided": Strided, "Plain": Plain}
CASES = [
    (f"{how}, {net.__name__}", lambda net=net, how=how: Prepared(net(), how), (3, 32, 32), {})
    for net, hows in ((Strided, PREPARE), (Plain, ("divided by 255", "clamped")))
    for how in hows
]


def check(label, model, td):
    how, net = label.split(", ")
    x = image()
    same(td, reverse(NETS[net](), input_size=(3, 32, 32)), x, PREPARE[how](x))
