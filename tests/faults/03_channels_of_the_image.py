"""The image's channels flipped, repeated from grey, or mixed as `transform_input` of public Inception networks does.

Today: converts silently to another network (a classifier of 1 or 3 features behind a stem), or crashes.
Right: the network without it, run on the prepared image; entries read what the first convolution reads.
Why: SPEC 1.0.
"""

import torch
from common import Plain, Strided, image, same
from torch import nn

from td_compiler import reverse


def transform_input(x):
    red = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
    green = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
    blue = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
    return torch.cat((red, green, blue), 1)


PREPARE = {
    "flipped by a list": (3, lambda x: x[:, [2, 1, 0]]),
    "flipped": (3, lambda x: x.flip(1)),
    "repeated": (1, lambda x: x.repeat(1, 3, 1, 1)),
    "expanded": (1, lambda x: x.expand(-1, 3, -1, -1)),
    "concatenated": (1, lambda x: torch.cat([x, x, x], 1)),
    "transform_input": (3, transform_input),
}


class Prepared(nn.Module):
    def __init__(self, net, how):
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x):
        return self.net(PREPARE[self.how][1](x))


NETS = {"Strided": Strided, "Plain": Plain}
CASES = [
    (f"{how}, {net.__name__}", lambda net=net, how=how: Prepared(net(), how), (PREPARE[how][0], 32, 32), {})
    for net, hows in ((Strided, PREPARE), (Plain, ("flipped", "repeated")))
    for how in hows
]


def check(label, model, td):
    how, net = label.split(", ")
    x = image(PREPARE[how][0])
    same(td, reverse(NETS[net](), input_size=(3, 32, 32)), x, PREPARE[how][1](x))
