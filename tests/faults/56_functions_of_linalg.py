"""torch.linalg and torch.special functions in forward.

Today: converts and runs, but cannot be written: "linalg_vector_norm cannot be carried into emitted source".
Right: saves and loads, the same bits.
Why: README, the network can be written out as standalone source.
"""

import tempfile
from pathlib import Path

import torch
from common import Plain, image
from torch import nn

from td_compiler import from_pretrained

HOW = {
    "vector_norm": lambda x: x / (torch.linalg.vector_norm(x, ord=2, dim=(2, 3), keepdim=True) + 1),
    "norm": lambda x: x / (torch.linalg.norm(x, dim=1, keepdim=True) + 1),
    "special": lambda x: x * torch.special.expit(x),
    "erf": lambda x: x * torch.special.erf(x),
}


class Through(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return HOW[self.how](x)


CASES = [(how, lambda how=how: Plain(last=Through(how)), (3, 32, 32), {}) for how in HOW]


@torch.no_grad()
def check(label, model, td):
    x, td = image(), td.eval()
    with tempfile.TemporaryDirectory() as folder:
        td.save_pretrained(Path(folder) / "net")
        again = from_pretrained(Path(folder) / "net", trust_code=True).eval()
    assert torch.equal(again(x), td(x)), "the loaded network puts out other bits"
