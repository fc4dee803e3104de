"""Dropout that draws four numbers at a time drops like torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from td_compiler import reverse, zoo
from td_compiler.layers.dropout import FastDropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_share_and_scale(p: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 13, 21, 23).to(memory_format=layout).requires_grad_()
    y = FastDropout(p)(x)
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)), rtol=2e-4, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())  # what is dropped gets no gradient, the rest the scale
    for other in (kept.roll(1, 0), kept.roll(1, 1), kept.roll(1, 3)):  # neighbours know nothing of each other
        both = (kept & other).float().mean().item()
        assert both == pytest.approx((1 - p) ** 2, abs=5e-3)


def test_as_torch_elsewhere() -> None:
    layer, x = FastDropout(0.5), torch.randn(2, 3, 4, 5)
    assert layer.eval()(x) is x
    layer.train()
    assert torch.equal(FastDropout(1.0)(x), torch.zeros_like(x))
    sparse = torch.randn(4, 6)[:, ::2]  # not dense: torch's own
    torch.manual_seed(0)
    found = layer(sparse)
    torch.manual_seed(0)
    assert torch.equal(found, nn.functional.dropout(sparse, 0.5))
    masks = torch.func.vmap(lambda v: layer(v) == 0, randomness="different")(torch.ones(3, 64))
    assert not torch.equal(masks[0], masks[1])
    with pytest.raises(RuntimeError, match="random"):
        torch.func.vmap(layer)(torch.ones(3, 64))


def test_maps_take_it_and_the_head_does_not() -> None:
    td = reverse(zoo.nin_light())
    assert [type(m) for m in td.modules() if isinstance(m, nn.Dropout)] == [FastDropout, FastDropout]
    assert {type(m) for m in reverse(zoo.nin_light(), fast=False).modules() if isinstance(m, nn.Dropout)} == {
        nn.Dropout
    }
    head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5))  # fmt: skip
    assert [type(m) for m in reverse(head, input_size=(3, 32, 32)).modules() if isinstance(m, nn.Dropout)] == [
        nn.Dropout
    ]
