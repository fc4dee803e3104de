"""Dropout whose mask costs little on a CPU, where torch draws it number by number.

Everything here uses torch alone: emitted source carries these definitions verbatim.
"""

import torch
from torch import Tensor, nn

__all__ = ["FastDropout"]


class FastDropout(nn.Dropout):
    """Dropout of maps (N, C, H, W) that draws four numbers at a time.

    A number of 64 random bits decides on four values, 16 bits each: p is rounded to a
    multiple of 2^-16, and what is kept is scaled by what the rounded p asks for.
    Elsewhere than in training on a CPU it is torch's own dropout.
    """

    def forward(self, x: Tensor) -> Tensor:
        eager = not (torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy))
        dropped = round(self.p * 2**16)
        if not (self.training and eager and x.is_cpu and dropped < 2**16):
            return super().forward(x)
        last = torch.channels_last
        if not (x.is_contiguous() or x.is_contiguous(memory_format=last)):
            return super().forward(x)
        draws = (x.numel() + 3) // 4
        bits = torch.randint(-(2**63), 2**63 - 1, (draws,), device=x.device)
        drawn = bits.view(torch.int16).as_strided(x.size(), x.stride())
        kept = drawn >= dropped - 2**15
        return x * kept * (2**16 / (2**16 - dropped))
