"""No false alarm on networks written in other ways, no pass where a check cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import ConversionError, reverse, verify
from td_compiler.verification.verify import Check, Verification, marks

SIZE = (3, 32, 32)


def unit(inputs: int, width: int, stride: int = 1, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


class Block(nn.Module):
    """A residual block whose shortcut is made by `short(inputs, width, stride)`."""

    def __init__(self, inputs: int, width: int, stride: int, short: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(inputs, width, stride), unit(width, width))
        self.short = short(inputs, width, stride)
        self.gate: nn.Module = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.gate(self.body(x)) + self.short(x))


class Passing(nn.Module):
    """An identity of the user's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Averaged(nn.Module):
    """The shortcut of ResNet-D: an average pooling, a 1x1 convolution, a norm."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv, self.norm = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.pool(x)))


class Pixels(nn.Module):
    """A gate for every value of the map, at full resolution: it follows what it gates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.conv(x)).clamp(min=0.1)


class MeanDropout(nn.Module):
    """Drops in evaluation too, as for an estimate of uncertainty."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.3, training=True)


def wide(inputs: int, width: int, stride: int) -> nn.Module:
    """A shortcut of two layers wherever shape or width changes."""
    if stride == 1 and inputs == width:
        return Passing()
    return nn.Sequential(unit(inputs, inputs, stride, groups=inputs), unit(inputs, width, kernel=1))


def network(short: Callable[[int, int, int], nn.Module], *more: nn.Module) -> nn.Sequential:
    blocks = (Block(*sizes, short) for sizes in ((8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 16, 2)))
    return nn.Sequential(unit(3, 8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *more, nn.Linear(16, 5))


def marked() -> nn.Module:
    """A library has left its mark on every module, in public."""
    model = network(Averaged)
    for i, module in enumerate(model.modules()):
        module.layer_index = i  # type: ignore[assignment]
        module.owner = "a library"  # type: ignore[assignment]
    return model


def gated() -> nn.Module:
    model = network(wide)
    for module in model:
        if isinstance(module, Block):
            module.gate = Pixels(module.body[1][0].out_channels)
    return model


def two_names() -> nn.Module:
    """The classifier is known under a second name."""
    model = network(Averaged)
    model.add_module("known_as", nn.Identity())
    model.known_as = model[-2]
    return nn.Sequential(model[0], *list(model)[1:-1])


IDIOMS: dict[str, Callable[[], nn.Module]] = {
    "own identities": lambda: network(wide),
    "averaged": lambda: network(Averaged),
    "marked": marked,
    "gates at full resolution": gated,
    "random in evaluation": lambda: network(wide, MeanDropout()),
    "two names": two_names,
    "float64": lambda: network(Averaged).double(),
    "bfloat16": lambda: network(Averaged).bfloat16(),
}


@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
@pytest.mark.parametrize("idiom", IDIOMS)
def test_no_false_alarm(idiom: str, filters: str) -> None:
    torch.manual_seed(0)
    result = verify(IDIOMS[idiom](), input_size=SIZE, filters=filters)
    assert result.passed, str(result)
    assert {check.name for check in result.checks if check.skipped} <= {"its parts, put together again, are the source"}


def test_a_given_network_is_checked_by_its_own_options() -> None:
    model = network(Averaged)
    td = reverse(model, input_size=SIZE, filters="uniform", head_width=20, init="fresh")
    assert verify(model, td).passed
    assert not verify(model, td, head_width=None, filters="mirror").passed
    with pytest.raises(ConversionError, match="not a top-down network"):
        verify(model, model)


def test_a_lost_body_is_seen() -> None:
    """Layers of the longest way into a sum are no shortcut."""

    class Longer(Block):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__(inputs, width, stride, short=Averaged)
            self.more = unit(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.more(self.body(x)) + self.short(x))

    def build(kind: Callable[..., nn.Module]) -> nn.Module:
        blocks = kind(8, 8, 1), kind(8, 16, 2)
        return nn.Sequential(unit(3, 8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

    td = reverse(build(partial(Block, short=Averaged)), input_size=SIZE)
    failed = verify(build(Longer), td, init="fresh").failures
    assert "layers and parameters keep their names" in {check.name for check in failed}


def test_no_pass_where_a_check_cannot_tell() -> None:
    check = Check("a property", "not looked at", "there is nothing to see")
    assert not check.passed and not check.failed
    assert not Verification("Net", (check,)).passed
    assert Verification("Net", (check, Check("another", "passed", "seen"))).passed
    model = network(Averaged)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    td = reverse(model, input_size=SIZE)
    for parameter in td.parameters():
        parameter.requires_grad_(False)
    found = {each.name: each.outcome for each in verify(model, td).checks}
    assert found["every trainable parameter reaches the loss"] == "not looked at"


def test_progress_names_every_check_before_it_runs() -> None:
    begun: list[str] = []
    result = verify(network(Averaged), input_size=SIZE, progress=begun.append)
    assert begun == ["the network converts", *(check.name for check in result.checks[:-1])]


def test_marks_for_any_encoding() -> None:
    assert marks("utf-8") == marks(None) == {"passed": "✓", "failed": "✗", "not looked at": "-"}
    assert marks("ascii") == marks("no such one") == {"passed": "ok", "failed": "FAILED", "not looked at": "-"}
