"""Convolutions whose kernels have an even side say how they pad; the numbers are those of padding="same"."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from td_compiler import fuse, reverse
from td_compiler.emission import emit_source
from td_compiler.layers.even_kernels import EvenConv2d


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), ((4, 3), 1), ((3, 6), (2, 1)), (4, 3)])
def test_the_same_bits(kernel: int | tuple[int, int], dilation: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, kernel, padding="same", dilation=dilation, groups=2)
    reach = [d * (k - 1) for d, k in zip(plain.dilation, plain.kernel_size, strict=True)]
    even = EvenConv2d(4, 6, kernel, padding=(reach[0] // 2, reach[1] // 2), dilation=dilation, groups=2)
    even.load_state_dict(plain.state_dict())
    images = torch.randn(2, 4, 13, 9)
    assert torch.equal(even(images), plain(images))


def test_a_network_of_even_kernels() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 4, 4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 2, 2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    td = reverse(model, input_size=(3, 32, 32)).eval()
    text = emit_source(td, class_name="Net", origin="here")
    assert 'padding="same"' not in text
    assert "EvenConv2d(in_chans, out_channels, kernel_size=4, padding=1)" in text
    images = torch.randn(2, 3, 33, 32)
    torch.testing.assert_close(fuse(td)(images), td(images))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fuse(td).modules())
