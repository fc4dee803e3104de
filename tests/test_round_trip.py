"""The parts of a conversion, put together again, are the bottom-up network (SPEC 9.1); what is not, is seen."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import verify, zoo
from td_compiler.graph.notes import facts, source_of
from td_compiler.graph.states import TopDown
from td_compiler.options import Options
from td_compiler.passes import cut, read
from td_compiler.verification.checks import Skipped, Violation
from td_compiler.verification.round_trip import bottom_up_again, compare
from tests.support.families import FAMILIES

SIZE = (3, 64, 64)
PARTS = "its parts, put together again, are the source"


def returns(model: nn.Module, size: tuple[int, int, int], *, options: Options | None = None) -> None:
    """Assert that a network comes back, for several image and batch sizes, in both modes."""
    again = bottom_up_again(cut(read(model, size), options or Options(input_size=size)))
    source = copy.deepcopy(model)
    channels, height, width = size
    for batch, side in ((2, (height, width)), (3, (height + 5, width + 10)), (5, (2 * height, height))):
        images = torch.randn(batch, channels, *side, generator=torch.Generator().manual_seed(batch))
        for training in (False, True):
            compare(source, again, images, training=training)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_come_back(name: str) -> None:
    torch.manual_seed(0)
    returns(FAMILIES[name](), SIZE)


@pytest.mark.parametrize("name", ["lenet_fc", "nin_light", "resnet20"])
@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
def test_the_papers_networks_come_back(name: str, filters: str) -> None:
    size = (3, 32, 32) if name == "resnet20" else (1, 28, 28)
    returns(zoo.ZOO[name](), size, options=Options(filters=filters, input_size=size))


def test_a_leading_stem_comes_back() -> None:
    returns(zoo.resnet18_light(), SIZE, options=Options(stem="leading", input_size=SIZE))


class Functions(nn.Module):
    """Functions with bare parameters, sizes by arithmetic, a dropout that follows the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.gain = nn.Parameter(torch.randn(16, 1, 1))
        self.classes = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        x = F.conv2d(x, self.kernel, padding=1)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training)
        x = F.dropout(F.max_pool2d(F.relu(x), 2), 0.3, self.training)
        x = self.gain * F.relu(self.conv(x))
        count, channels = x.shape[0], x.shape[1]
        return self.classes(x.view(count, channels, -1).mean(2))


def test_functions_come_back() -> None:
    torch.manual_seed(0)
    returns(Functions(), (3, 24, 24))


class Auxiliary(nn.Module):
    """Scores beside its own, in training, with a dropout on the way that runs before the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.beside = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5))
        self.dropout, self.classes = nn.Dropout(), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        beside = self.beside(x) if self.training else None
        scores: torch.Tensor = self.classes(self.dropout(F.relu(self.second(x)).mean((2, 3))))
        return scores if beside is None else (scores, beside)


def test_what_auxiliary_classifiers_draw_changes_nothing() -> None:
    torch.manual_seed(0)
    returns(Auxiliary(), (3, 24, 24))


def lose_a_node(top_down: TopDown) -> None:
    stage = top_down.stages[0]
    stage.spans[stage.units[0]].pop()


def lose_a_unit(top_down: TopDown) -> None:
    top_down.bottom_up.units.pop(2)


def run_a_unit_twice(top_down: TopDown) -> None:
    top_down.bottom_up.units.insert(2, top_down.bottom_up.units[1])


def run_in_two_stages(top_down: TopDown) -> None:
    top_down.stages[1].units.append(top_down.stages[0].units[0])


def lose_the_head(top_down: TopDown) -> None:
    top_down.bottom_up.head.pop(0)


def bake_a_size_in(top_down: TopDown) -> None:
    node = next(n for n in top_down.bottom_up.head if facts(n).value.dim() == 2)
    node.op, node.target, node.args, node.kwargs = "call_function", torch.reshape, (node.args[0], (2, -1)), {}


def take_another_layer(top_down: TopDown) -> None:
    stage = next(stage for stage in top_down.stages if len(stage.units) > 1)
    convolutions = stage.graph.find_nodes(op="call_module")
    one = next(n for n in convolutions if n.target.endswith("conv2"))
    other = next(n for n in convolutions if n.target.endswith("conv2") and n.target != one.target)
    one.target = source_of(one).target = other.target


def read_from_elsewhere(top_down: TopDown) -> None:
    unit = next(u for u in top_down.bottom_up.units if len(u.nodes) > 4)
    stage = next(stage for stage in top_down.stages if unit in stage.units)
    first, second = (n for n in stage.spans[unit] if n.op == "call_module" and n.target.endswith(("conv1", "conv2")))
    second.args = first.args


@pytest.mark.parametrize(
    "spoil",
    [
        lose_a_node,
        lose_a_unit,
        run_a_unit_twice,
        run_in_two_stages,
        lose_the_head,
        bake_a_size_in,
        take_another_layer,
        read_from_elsewhere,
    ],
)
def test_what_is_spoilt_is_seen(spoil: Callable[[TopDown], None]) -> None:
    torch.manual_seed(0)
    model = zoo.resnet(14)
    parts = cut(read(model, SIZE), Options())
    spoil(parts)
    with pytest.raises(Violation):
        again = bottom_up_again(parts)
        for batch in (2, 3):
            compare(copy.deepcopy(model), again, torch.randn(batch, *SIZE), training=False)


def test_what_cannot_be_told_is_not_looked_at() -> None:
    body = (nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    again = bottom_up_again(cut(read(model, SIZE), Options()))
    restless, calls = copy.deepcopy(model), itertools.count(1)
    restless.register_forward_hook(lambda module, given, output: output + next(calls))
    with pytest.raises(Skipped, match="every time"):
        compare(restless, again, torch.randn(2, *SIZE), training=False)
    with pytest.raises(Skipped, match="does not run"):
        compare(copy.deepcopy(model), again, torch.randn(2, 3, 2, 2), training=False)


def test_verify_says_what_it_ran() -> None:
    model = zoo.resnet(8)
    check = next(check for check in verify(model, input_size=(3, 32, 32)).checks if check.name == PARTS)
    assert check.passed and not check.skipped
    assert check.detail.startswith("outputs and gradients for 2x3x33x31 in evaluation and training and 3x3x33x47")
    check = next(check for check in verify(model.to("meta"), input_size=(3, 32, 32)).checks if check.name == PARTS)
    assert check.skipped and "meta device" in check.detail
