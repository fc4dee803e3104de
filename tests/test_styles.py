"""Blocks without modules, and blurs that are functions, in small networks (SPEC 1.2, 9.2, 2.14)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import reverse
from td_compiler.options import Filters
from tests.oracles import styles

SIZE = (3, 32, 32)


# inline: shuffles at the end of stages, a module that holds all, activations that open blocks, functional projections
@pytest.mark.parametrize("seed", [16, 17, 29, 2019])
def test_a_block_is_what_its_paths_make_it(seed: int) -> None:
    bad = [outcome for outcome in styles(seed) if outcome.result != "right"]
    assert not bad, f"{bad[0].result}: {bad[0].why}\n{bad[0].text}"


class Blurred(nn.Module):
    """Residual blocks; the strided one blurs with one fixed filter for each channel before it takes every second."""

    taps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.three, self.short = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(8, 24, 1, stride=2)
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("taps", row.outer(row).div(16).expand(16, 1, 3, 3).clone())
        self.fc = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        y = F.pad(F.relu(self.two(x)), (1, 1, 1, 1), mode="reflect")
        y = F.conv2d(y, self.taps, stride=2, groups=16)
        return self.fc(F.relu(self.three(y) + self.short(x)).mean((2, 3)))


@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
def test_a_blur_follows_its_channels(filters: Filters) -> None:
    td = reverse(Blurred(), input_size=SIZE, filters=filters).eval()
    blur = dict(td.named_buffers())["taps"]
    assert td.get_submodule("two").out_channels == blur.shape[0]
    assert all(torch.equal(row, Blurred().taps[0]) for row in blur)
    seen: list[torch.Tensor] = []
    td.get_submodule("two").register_forward_hook(lambda module, given, made: made.fill_(1.0))
    td.get_submodule("three").register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    td(torch.rand(2, *SIZE))
    torch.testing.assert_close(seen[0], torch.ones_like(seen[0]))  # reflected at the borders, not filled with zeros
