"""`register`: rows for layers and functions of a user's own."""

from typing import Any

import pytest
import torch
from torch import nn

from td_compiler import ConversionError, register, reverse
from td_compiler.graph.operators import FUNCTIONS, LAYERS, METHODS


@pytest.fixture(autouse=True)
def own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[dict[Any, Any]] = [FUNCTIONS, LAYERS, METHODS]
    for table in tables:
        for key in list(table):
            monkeypatch.setitem(table, key, table[key])


class Scaled(nn.Module):
    """A norm of one's own: a gain for every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain.view(1, -1, 1, 1) / x.std((2, 3), keepdim=True)


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), Scaled(8), nn.ReLU(), nn.MaxPool2d(2)]
    more = [nn.Conv2d(8, 16, 3, padding=1), Scaled(16), nn.ReLU()]
    return nn.Sequential(*layers, *more, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def test_a_registered_norm_is_the_networks_norm() -> None:
    register(Scaled, like=nn.GroupNorm, axes={"gain": ("in",)}, sizes={"channels": "in"})
    td = reverse(network(), input_size=(3, 32, 32), filters="uniform")
    widths = {name: module.channels for name, module in td.named_modules() if isinstance(module, Scaled)}
    assert set(widths.values()) == {8}
    assert {"entry.1.norm", "merge.1.norm"} <= widths.keys()
    LAYERS.pop(Scaled)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ConversionError, match="kind 'nom' is none of conv, linear, norm"):
        register(Scaled, "nom")
    with pytest.raises(ConversionError, match="Scaled has no row in the operator table"):
        register(torch.arctan, like=Scaled)
    with pytest.raises(ConversionError, match="no kind"):
        register(Scaled)
