"""A kernel used at scales of several kernel sizes, under filters="reversed" (SPEC 2.6, 2.14)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler import ConversionError, reverse, verify
from tests.test_idioms import FILTERS, SIZE, conv_bn


class Net(nn.Module):
    """5x5 kernels at scale 1, 3x3 at 2 and 4; one 3x3 layer, or kernel, works at every scale."""

    def __init__(self, *, functional: bool = False) -> None:
        super().__init__()
        self.functional = functional
        self.stem, self.shared = conv_bn(3, 16), nn.Conv2d(16, 16, 3, 1, 1, bias=False)
        self.kernel = nn.Parameter(torch.randn(16, 16, 3, 3)) if functional else None
        sizes = ((5, 1), (5, 1), (3, 2), (3, 1), (3, 2))
        self.parts = nn.ModuleList(conv_bn(16, 16, kernel, stride) for kernel, stride in sizes)
        self.norms, self.fc = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3)), nn.Linear(16, 10)

    def again(self, x: Tensor, norm: int) -> Tensor:
        y = self.shared(x) if self.kernel is None else F.conv2d(x, self.kernel, padding=1)
        return F.relu(self.norms[norm](y))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.parts[1](self.parts[0](self.stem(x))), 0)
        x = self.again(self.parts[3](self.parts[2](x)), 1)
        x = self.again(self.parts[4](x), 2)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("filters", FILTERS)
def test_layer(filters: str) -> None:
    torch.manual_seed(0)
    result = verify(Net(), input_size=SIZE, filters=filters)
    assert not result.failures, str(result.failures[0])


def test_layer_comes_apart() -> None:
    td = reverse(Net(), input_size=SIZE, filters="reversed")
    kernels = {name: tuple(m.kernel_size) for name, m in td.named_modules() if "shared" in name}
    assert kernels == {"shared": (3, 3), "shared_1": (5, 5)}
    assert any("shared (3x3), shared_1 (5x5)" in note for note in td.report.notes)


def test_kernel_of_a_function() -> None:
    with pytest.raises(ConversionError, match=r"kernel is used at several scales, whose kernels are .*mirror"):
        reverse(Net(functional=True), input_size=SIZE, filters="reversed")
    assert reverse(Net(functional=True), input_size=SIZE)(torch.rand(2, *SIZE)).shape == (2, 10)
