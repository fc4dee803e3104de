"""The checker says yes to what is right and, property by property, no to what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from td_compiler import ConversionError, TopDownNet, reverse, verify, zoo
from td_compiler.cli import app as cli
from td_compiler.layers.pyramid import Pyramid
from td_compiler.verification import checks, subject
from td_compiler.verification import verify as verification

SHAPE = "the output has the right shape"
GRADIENTS = "every trainable parameter reaches the loss"
PYRAMID = "one pyramid level per scale"
MAPS = "stage maps grow from coarse to fine"
WIDTHS = "stages have the widths of the arrangement"
SETTINGS = "layers keep their settings"
NAMES = "layers and parameters keep their names"
WEIGHTS = "weights are kept and finite"
PARTS = "its parts, put together again, are the source"
LOADS = "emitted source loads strictly"
SOURCE = "emitted source computes the same bits"
TRAINS = "made afresh from it, a network trains"
DRAWN = "made afresh, it is drawn as the source is"
CLASSES = "made afresh, it takes other classes"
UNTOUCHED = "the source is untouched"


class Small(nn.Module):
    """A stem and three residual blocks, two of them strided."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU())
        self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2), Block(6, 8, 2))
        self.drop = nn.Dropout(0.25)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.blocks(self.stem(x)).mean((2, 3))))


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, stride, 1), nn.BatchNorm2d(width, eps=1e-3)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width, eps=1e-3)
        self.act = nn.LeakyReLU(0.2)
        self.skip = nn.Conv2d(inputs, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(y + self.skip(x))


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


def failures(*networks: Any, **options: Any) -> set[str]:
    return {check.name for check in verify(*networks, input_size=(3, 32, 32), **options).failures}


@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
def test_what_is_right_passes(model: Small, filters: str) -> None:
    result = verify(model, input_size=(3, 32, 32), filters=filters, head_width=5 if filters == "mirror" else None)
    assert result.passed, str(result)
    assert [check.name for check in result.checks] == [
        *(
            SHAPE,
            GRADIENTS,
            PYRAMID,
            MAPS,
            WIDTHS,
            SETTINGS,
            NAMES,
            WEIGHTS,
            PARTS,
            LOADS,
            SOURCE,
            TRAINS,
            DRAWN,
            CLASSES,
            UNTOUCHED,
        )
    ]
    assert not any(check.skipped for check in result.checks)
    lines = str(result).splitlines()
    assert lines[0] == "Small: 15 of 15 checks passed"
    assert lines[1] == "✓ the output has the right shape: (2, 5) for images of 3x32x32 and 3x33x31"


def conv(td: TopDownNet) -> nn.Conv2d:
    return td.get_submodule("blocks.0.conv2")  # type: ignore[return-value]


def more_classes(td: TopDownNet) -> None:
    td.fc = nn.Linear(td.fc.in_features, 6)


def cut_off(td: TopDownNet) -> None:
    td.get_submodule("blocks.1.conv1").register_forward_hook(lambda module, inputs, output: output.detach())


def other_scales(td: TopDownNet) -> None:
    td.add_module("pyramid", Pyramid([1, 2, 3]))


def shrinking(td: TopDownNet) -> None:
    conv(td).padding = (0, 0)


def other_slope(td: TopDownNet) -> None:
    td.blocks["2"].act.negative_slope = 0.3


def other_rate(td: TopDownNet) -> None:
    td.drop.p = 0.5


def other_mode(td: TopDownNet) -> None:
    td.get_submodule("blocks.0.norm1").eval()


def frozen(td: TopDownNet) -> None:
    conv(td).weight.requires_grad_(False)


def other_value(td: TopDownNet) -> None:
    conv(td).weight.data[0, 0, 0, 0] += 1


def not_a_number(td: TopDownNet) -> None:
    td.merge["1"].conv.weight.data[0] = float("nan")


def test_nothing_is_seen_without_damage(model: Small) -> None:
    assert failures(model, reverse(model, input_size=(3, 32, 32))) == set()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (more_classes, {SHAPE, SETTINGS, SOURCE}),
        (cut_off, {GRADIENTS}),
        (other_scales, {PYRAMID, SHAPE, MAPS}),
        (shrinking, {MAPS, SHAPE, PYRAMID, WIDTHS, GRADIENTS, SOURCE, TRAINS, CLASSES}),
        (other_slope, {SETTINGS}),
        (other_rate, {SETTINGS}),
        (other_mode, {SETTINGS}),
        (frozen, {SETTINGS}),
        (other_value, {WEIGHTS}),
        (not_a_number, {WEIGHTS}),
    ],
)
def test_damage_is_seen(model: Small, damage: Callable[[TopDownNet], None], expected: set[str]) -> None:
    td = reverse(model, input_size=(3, 32, 32))
    damage(td)
    found = failures(model, td)
    assert found
    assert found <= expected
    assert next(iter(expected)) in found or len(expected) > 1


def test_other_widths_are_seen(model: Small) -> None:
    td = reverse(model, input_size=(3, 32, 32))
    assert failures(model, td, filters="uniform") == {WIDTHS}
    assert failures(model, td, filters="reversed") == {WIDTHS}


def test_other_inner_widths_are_seen(model: Small) -> None:
    """A width inside a block shows in no stage."""
    td = reverse(model, input_size=(3, 32, 32), fast=False)
    block = td.blocks["1"]
    block.conv1, block.norm1 = nn.Conv2d(block.conv1.in_channels, 7, 3, 1, 1), nn.BatchNorm2d(7, eps=1e-3)
    block.conv2.weight = nn.Parameter(torch.zeros(6, 7, 3, 3))
    block.conv2.in_channels = 7
    assert failures(model, td) == {WIDTHS}


class Excited(nn.Module):
    """A depthwise convolution and a gate, whose widths are those of what they read."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs)
        self.fc1, self.fc2 = nn.Conv2d(inputs, 2, 1), nn.Conv2d(2, inputs, 1)
        self.point = nn.Conv2d(inputs, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(x).relu()
        x = x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.point(x).relu()


def test_gates_follow_what_they_gate(model: Small) -> None:
    model.blocks = nn.Sequential(Excited(4, 6, 1), Excited(6, 8, 2), Excited(8, 8, 2))
    td = reverse(model, input_size=(3, 32, 32))
    block = td.get_submodule("blocks.1")
    assert block.fc2.out_channels == 8  # of a map that has 6 channels in the source
    result = verify(model, td, input_size=(3, 32, 32))
    assert result.passed, str(result)
    block.point = nn.Conv2d(8, 7, 1)
    assert WIDTHS in failures(model, td)


def test_lost_layers_are_seen(model: Small) -> None:
    """Layers of the source that are not in the top-down network, other than stem and projections."""

    class More(Small):
        more: nn.Module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.more(self.drop(self.blocks(self.stem(x)).mean((2, 3)))))

    larger = More()
    larger.more = nn.Linear(8, 8)
    larger.load_state_dict(model.state_dict(), strict=False)
    assert failures(larger, reverse(model, input_size=(3, 32, 32))) == {NAMES}


def test_other_bits_are_seen(model: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    emit = subject.emit_source
    monkeypatch.setattr(subject, "emit_source", lambda *a, **k: emit(*a, **k).replace("eps=0.001", "eps=0.01"))
    assert failures(model) == {SOURCE}
    monkeypatch.setattr(subject, "emit_source", lambda *a, **k: emit(*a, **k).replace("self.fc", "self.fully"))
    assert failures(model) == {LOADS, SOURCE}


def touched_value(model: Small) -> None:
    model.fc.weight.data[0, 0] += 1


def touched_mode(model: Small) -> None:
    model.blocks.eval()


def touched_module(model: Small) -> None:
    model.drop = nn.Dropout(0.25)


def touched_hook(model: Small) -> None:
    model.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("touch", [touched_value, touched_mode, touched_module, touched_hook])
def test_a_changed_source_is_seen(
    model: Small, monkeypatch: pytest.MonkeyPatch, touch: Callable[[Small], None]
) -> None:
    def careless(source: Small, **options: Any) -> TopDownNet:
        touch(source)
        return reverse(source, **options)

    monkeypatch.setattr(verification, "reverse", careless)
    assert failures(model) == {UNTOUCHED}


def test_a_breakdown_is_a_failed_check(model: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> TopDownNet:
        raise AssertionError("a pass\nbroke its promise")

    monkeypatch.setattr(verification, "reverse", broken)
    result = verify(model)
    assert not result.passed
    assert result.td is None
    assert [check.name for check in result.checks] == ["the network converts"]
    assert "AssertionError" in str(result)
    assert "a pass broke its promise" in str(result)


def test_a_refusal_is_an_error() -> None:
    with pytest.raises(ConversionError, match="no 2D convolution"):
        verify(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    with pytest.raises(ConversionError, match="filters='all'"):
        verify(zoo.lenet_fc(), filters="all")


def test_a_parameter_idle_in_the_source_may_be_idle(model: Small) -> None:
    model.fc.unused = nn.Parameter(torch.zeros(2))
    assert failures(model) <= {SETTINGS, WEIGHTS, SOURCE}  # but never the gradients


def test_the_meta_device_leaves_out_values() -> None:
    with torch.device("meta"):
        model = Small()
    result = verify(model, input_size=(3, 32, 32))
    assert result.passed, str(result)
    assert [check.name for check in result.checks if check.skipped] == [WEIGHTS, PARTS, SOURCE, TRAINS, DRAWN, CLASSES]
    td = reverse(model, input_size=(3, 32, 32))
    cut_off(td)
    assert failures(model, td) == {GRADIENTS}


def test_a_flatten_head_is_read_at_its_one_size() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(6 * 16, 3)),
    )
    result = verify(model, input_size=(1, 28, 28))
    assert result.passed, str(result)
    assert result.checks[0].detail == "(2, 3) for images of 1x28x28; the source takes no odd size"


def test_nothing_given_is_changed(model: Small) -> None:
    td = reverse(model, input_size=(3, 32, 32)).train()
    before = checks.fingerprint(td), checks.fingerprint(model)
    verify(model, td, input_size=(3, 32, 32))
    checks.untouched(before[0], checks.fingerprint(td))
    checks.untouched(before[1], checks.fingerprint(model))


@pytest.mark.parametrize("words", [[], ["--meta"], ["--filters", "uniform", "--seed", "3"]])
def test_command(words: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["verify", "zoo:lenet_fc", *words])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("✓") == (9 if words == ["--meta"] else 15)


def test_command_fails_where_a_check_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (*verification._CHECKS[:2], ("something", lambda subject: 1 / 0))
    monkeypatch.setattr(verification, "_CHECKS", rows)
    done = CliRunner().invoke(cli.app, ["verify", "zoo:lenet_fc"])
    assert done.exit_code == 1
    assert "✗ something" in done.stdout
    assert "ZeroDivisionError" in done.stdout
