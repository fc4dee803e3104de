"""Layer norm over channels written out, its parameters indexed to (C, 1, 1), as in public ConvNeXt code.

Today: refused: the norm that entries copy from the stem keeps the stem's width at every stage.
Right: the same network as with permute, nn.LayerNorm, permute.
Why: SPEC 2.2; oracle 9.2.
"""

import torch
from common import image, same
from torch import nn

from td_compiler import reverse


class ChannelNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Permuted(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width, eps=1e-6)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), norm(width)
        self.up, self.down = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(self.depthwise(x)))))


def make(norm, widths=(16, 32, 64)):
    layers = [nn.Conv2d(3, widths[0], 4, 4), norm(widths[0])]
    for narrow, wide in zip(widths, widths[1:]):
        layers += [Block(narrow, norm), norm(narrow), nn.Conv2d(narrow, wide, 2, 2)]
    return nn.Sequential(
        *layers, Block(widths[-1], norm), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)
    )


CASES = [
    (filters, lambda: make(ChannelNorm), (3, 64, 64), {"filters": filters})
    for filters in ("mirror", "uniform", "reversed")
]


def check(label, model, td):
    same(td, reverse(make(Permuted), input_size=(3, 64, 64), filters=label), image(size=64))
