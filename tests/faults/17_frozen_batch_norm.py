"""Batch norm frozen to buffers: arithmetic on buffers before they meet the map.

Today: AttributeError "_tensor_constant0".
Right: converts; where a width stays, the constants are the source's; they get no gradient and follow .to().
Why: SPEC 1.1; 2.14.
"""

import torch
from common import Plain, image, stage_maps
from torch import nn


class Frozen(nn.Module):
    def __init__(self, width):
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.var + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.mean * scale).reshape(1, -1, 1, 1)


class Indexed(Frozen):
    def forward(self, x):
        return (x - self.mean[None, :, None, None]) / self.var.sqrt()[None, :, None, None]


def make(kind):
    net = Plain(last=kind(32))
    for part in (net.a, net.b, net.c):
        part[1] = kind(part[0].out_channels)
    return net


CASES = [
    (f"{kind.__name__}, {filters}", lambda kind=kind: make(kind), (3, 32, 32), {"filters": filters})
    for kind in (Frozen, Indexed)
    for filters in ("mirror", "uniform")
]


def check(label, model, td):
    assert torch.isfinite(td(image())).all()
    buffers = dict(td.named_buffers())
    if "mirror" in label:
        for name in ("last.mean", "b.1.var"):
            assert name in buffers, f"the buffer {name} is gone"
            assert torch.equal(buffers[name], dict(model.named_buffers())[name]), f"{name} has other values"
        y = stage_maps(td.double(), image().double())[0]  # that of `last`; behind it a dead ReLU may hide its effect
        assert y.dtype == torch.float64
        with torch.no_grad():
            td.get_submodule("last").mean.add_(3)  # looked up anew: .double() gives a module other buffer tensors
        assert not torch.equal(stage_maps(td, image().double())[0], y), "last.mean has no effect"
