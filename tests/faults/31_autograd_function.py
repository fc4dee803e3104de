"""A torch.autograd.Function with a backward of its own.

Today: traced through: the function's own backward is lost, silently; or a bare TypeError ("save_for_backward can only
save variables").
Right: converts (the module around it may stay whole): outputs and gradients are the function's own.
Why: SPEC 1.1.
"""

import torch
import torch.nn.functional as F
from common import Plain, close, image, same
from torch import nn

from td_compiler import reverse


class SiluByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s)) * 3  # three times the true gradient, so that it can be told apart


class Lean(nn.Module):
    def forward(self, x):
        return SiluByHand.apply(x)


class InNetwork(Plain):
    def forward(self, x):
        return self.fc(self.pool(SiluByHand.apply(self.maps(x))).flatten(1))


CASES = [("in a module", lambda: Plain(last=Lean()), (3, 32, 32), {}), ("in the network", InNetwork, (3, 32, 32), {})]


class Silu(nn.Module):
    def forward(self, x):
        return F.silu(x)


def check(label, model, td):
    right = reverse(Plain(last=Silu()), input_size=(3, 32, 32))
    same(td, right, image())
    if label == "in a module":  # at the end of the coarsest stage: all of its gradients are three times the true ones
        for net in (td, right):
            net(image()).sum().backward()
        close(
            td.get_submodule("c.0").weight.grad / 3,
            right.get_submodule("c.0").weight.grad,
            "the coarsest gradient over 3",
        )
