"""Mutations of the pipeline: a pass is left out or swapped with the next, and a check says so, or nothing changes.

What makes a state of a conversion (`find_stages`, `reverse_stages`, `build_layers`) can be neither: the passes behind
it work on what it returns.
"""

from __future__ import annotations

import functools
import itertools
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import ConversionError, TopDownNet, passes, zoo
from td_compiler.errors import Breakdown
from td_compiler.options import Options
from tests.snapshots import fill
from tests.support.families import FAMILIES

SIZE = (3, 32, 32)


class Halves(nn.Module):
    """Half of the channels through a convolution, by numbers written in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part = width // 2
        self.conv = nn.Conv2d(self.part, self.part, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, worked = torch.split(x, [self.part, self.part], 1)
        return torch.cat([kept, F.relu(self.conv(worked))], 1)


def split_widths() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Halves(8), nn.MaxPool2d(2), nn.Dropout(0.2)),
        *(nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(), Halves(24), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), Halves(32)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )


class Normalised(nn.Module):
    """A plain network of which the last map is flattened, of images that are normalised inside."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3)
        self.classes = nn.Linear(16 * 3 * 3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.a((x - self.mean) / 0.3)), 2)
        x = F.max_pool2d(F.relu(self.b(x)), 2)
        return self.classes(F.relu(self.c(x)).flatten(1))


def encoder() -> nn.Module:
    return nn.Sequential(*list(FAMILIES["regnet_y"]().children())[:-2])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (zoo.lenet_fc, {"merge": "concat", "upsample": "bilinear", "input_size": (1, 28, 28)}),
    "pre-activation": (lambda: zoo.resnet(8), {"filters": "uniform", "input_size": SIZE}),
    "strided stem": (FAMILIES["regnet_y"], {"filters": "reversed", "stem": "leading", "input_size": SIZE}),
    "split widths": (split_widths, {"filters": "reversed", "merge": "add", "input_size": SIZE}),
    "normalised, flattened": (Normalised, {"filters": "uniform", "input_size": (3, 28, 28)}),
    "pixels": (encoder, {"task": "segmentation", "num_classes": 4, "upsample": "transposed", "input_size": SIZE}),
}


PARTS = ("READ", "TURN", "BUILD")


def _mutations() -> dict[str, tuple[str, list[Any]]]:
    """What is done to the pipeline -> the part that it is done to, and the passes of that part then."""
    named: dict[str, tuple[str, list[Any]]] = {}
    for part in PARTS:
        steps = list(getattr(passes, part))
        for i, step in enumerate(steps):
            named[f"without {type(step).__name__}"] = part, steps[:i] + steps[i + 1 :]
        for i, (one, other) in enumerate(itertools.pairwise(steps)):
            swapped = [*steps[:i], other, one, *steps[i + 2 :]]
            named[f"{type(other).__name__} before {type(one).__name__}"] = part, swapped
    return named


MUTATIONS = _mutations()


class Caught(Exception):
    """A check failed; the message names the pass whose check it is."""


def convert(name: str) -> TopDownNet:
    """The network that the pipeline, as it stands, makes.

    Raises:
        Caught: if a check of a pass fails.
        ConversionError: if a pass refuses, or breaks down otherwise.
    """
    make, given = NETWORKS[name]
    torch.manual_seed(0)
    model, options = make(), Options(**given)
    try:
        return passes.build(passes.turn(passes.read(model, options.input_size, options.task), options))
    except Breakdown as error:
        cause = error.__cause__
        assert cause is not None
        inside = {frame.name.removeprefix("_") for frame in traceback.extract_tb(cause.__traceback__)}
        if isinstance(cause, AssertionError) and inside & {"requires", "ensures"}:
            raise Caught(str(error)) from error
        raise cause from None


def shown(network: TopDownNet) -> tuple[list[tuple[str, torch.Size]], list[torch.Tensor]]:
    """Parameters' names and shapes; outputs for two sizes of images, with values by shape."""
    fill(network.double())
    channels, height, width = network.report.input_size
    outputs = []
    for side in ((height, width), (height + 3, width + 1)):
        images = torch.rand(2, channels, *side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            outputs.append(network(images))
    return [(name, p.shape) for name, p in network.named_parameters()], outputs


@functools.cache
def right(name: str) -> tuple[list[tuple[str, torch.Size]], list[torch.Tensor]]:
    return shown(convert(name))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_caught_or_change_nothing(mutation: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = right(name)
    part, steps = MUTATIONS[mutation]
    monkeypatch.setattr(passes, part, tuple(steps))
    try:
        network = convert(name)
    except (Caught, ConversionError) as error:
        assert str(error), "without a word"
        return
    parameters, outputs = shown(network)
    assert parameters == expected[0]
    for found, should in zip(outputs, expected[1], strict=True):
        torch.testing.assert_close(found, should)
