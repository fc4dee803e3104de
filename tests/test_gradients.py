"""What a forward computes without gradients has none in the top-down network; what cannot be carried is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from td_compiler import ConversionError, reverse, verify
from tests.test_idioms import FILTERS, SIZE, Net, Residual


class Rounded(nn.Module):
    """Rounds, with the gradient of the identity."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rest = x.round() - x
        return x + rest


class Masked(nn.Module):
    """A mask computed by a method without gradients, and a mean under `inference_mode`."""

    @torch.no_grad()
    def mask(self, x: Tensor) -> Tensor:
        return (x > 0).float() * x.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            mean = x.mean((2, 3), keepdim=True)
        return (x - mean.clone()) * self.mask(x)


class Asked(nn.Module):
    """Gradients in training alone, as torchvision's tutorials ask for them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training):
            return self.conv(x)


class Scaled(nn.Conv2d):
    """A kernel divided by its mean size, which is taken as a number."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            size = self.weight.abs().mean((1, 2, 3), keepdim=True)
        return torch.nn.functional.conv2d(x, self.weight / size, self.bias, self.stride, self.padding)


def net(make: Any) -> Net:
    return Net(lambda cin, cout, stride: Residual(cin, cout, stride, make(cout)))


CASES = {
    "rounded": lambda width: Rounded(),
    "masked": lambda width: Masked(),
    "scaled": lambda width: Scaled(width, width, 3, padding=1),
}


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("name", CASES)
def test_without_gradients(name: str, filters: str) -> None:
    torch.manual_seed(0)
    result = verify(net(CASES[name]), input_size=SIZE, filters=filters)
    assert not result.failures, str(result.failures[0])


def test_gradient_of_a_block() -> None:
    """A block that keeps its shape has the gradient that it had."""
    torch.manual_seed(0)
    model = net(CASES["rounded"]).eval()
    block = model.layer2[1]
    own = reverse(model, input_size=SIZE, fast=False).eval().get_submodule("layer2.1")
    own.load_state_dict(block.state_dict())
    x = torch.randn(1, 16, 4, 4)
    gradients = [torch.autograd.grad(f(y := x.clone().requires_grad_()).sum(), y)[0] for f in (block, own)]
    assert gradients[0].count_nonzero() > 0
    torch.testing.assert_close(*gradients)


def test_gradients_in_training_alone() -> None:
    td = reverse(net(Asked), input_size=SIZE)
    td(torch.rand(2, *SIZE)).sum().backward()
    assert all(parameter.grad is not None for parameter in td.parameters())


class Frozen(Net):
    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.layer1(self.stem(x))
        return self.layer3(self.layer2(x))


class Lowered(Net):
    def features(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.layer1(self.stem(x))
        return self.layer3(self.layer2(x.float()))


@pytest.mark.parametrize(("make", "words"), [(Frozen, "requires_grad_"), (Lowered, "autocast around the call")])
def test_refused(make: type[Net], words: str) -> None:
    with pytest.raises(ConversionError, match=rf"test_\w+\.py:\d+.*{words}"):
        reverse(make(), input_size=SIZE)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_no_such_parts(reentrant: bool) -> None:
    """What is run twice to save memory runs once without gradients, and is trained."""

    class Saving(Net):
        def features(self, x: Tensor) -> Tensor:
            x = self.layer1(self.stem(x))
            return self.layer3(checkpoint(self.layer2, x, use_reentrant=reentrant))

    td = reverse(Saving(), input_size=SIZE)
    td(torch.rand(2, *SIZE)).sum().backward()
    assert all(parameter.grad is not None for parameter in td.parameters())
