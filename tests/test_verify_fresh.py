"""`verify` on emitted text that makes other networks afresh than it should: each fault is seen by its check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from td_compiler import reverse, verify, zoo
from td_compiler.network.base import TopDownNet
from td_compiler.verification import subject
from tests.test_verify import CLASSES, DRAWN, TRAINS

SIZE = (1, 28, 28)


class Scaled(nn.Module):
    """Drawn by other laws than torch's own, so that all of them stand in the text."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 5, padding=2)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.fc = nn.Linear(16, 10)
        for layer in (self.first, self.second, self.fc):
            nn.init.normal_(layer.weight, std=0.03)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.first(x).relu() * self.scale, 2)
        scores: torch.Tensor = self.fc(self.second(x).relu().mean((2, 3)))
        return scores


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, TopDownNet]:
    torch.manual_seed(0)
    model = Scaled()
    return model, reverse(model, input_size=SIZE)


FAULTS: list[tuple[str, str, str, set[str]]] = [  # what the text has, what it gets instead, what is said, what sees it
    ("torch.full((8, 1, 1), 0.5)", 'torch.full((8, 1, 1), float("nan"))', "scale is not finite", {TRAINS, DRAWN}),
    ("torch.full((8, 1, 1), 0.5)", "torch.zeros(8, 1, 1)", "scale is not 0.5 throughout", {DRAWN}),
    ("std=0.03", "std=0.3", "weight has the deviation 0.", {DRAWN}),
    ("nn.Linear(8, num_classes)", "nn.Linear(8, 10)", "scores of shape (2, 10)", {CLASSES}),
]


@pytest.mark.parametrize(("before", "after", "words", "seen_by"), FAULTS)
def test_faulty_text_is_seen(
    networks: tuple[nn.Module, TopDownNet],
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    after: str,
    words: str,
    seen_by: set[str],
) -> None:
    def emit(*given: object, write: Callable[..., str] = subject.emit_source, **named: object) -> str:
        text = write(*given, **named)
        assert before in text, text
        return text.replace(before, after)

    monkeypatch.setattr(subject, "emit_source", emit)
    found = {check.name: check.detail for check in verify(*networks).failures}
    assert found.keys() == seen_by
    assert any(words in detail for detail in found.values()), found


def test_trained_networks_say_nothing_of_how_they_were_drawn() -> None:
    torch.manual_seed(0)
    model = zoo.lenet_fc()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(torch.rand_like(parameter) ** 3)
    check = next(c for c in verify(model, input_size=SIZE).checks if c.name == DRAWN)
    assert check.passed and "in the source" not in check.detail, str(check)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, spectral_norm])
def test_computed_weights_among_others(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Where one layer computes its weight the others are drawn as ever, and looking at them moves nothing."""
    torch.manual_seed(0)
    model = Scaled().train()
    wrap(model.first)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    td = reverse(model, input_size=SIZE)
    result = verify(model, td)
    assert not result.failures, str(result.failures[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    namespace: dict[str, Any] = {}
    exec(subject.emit_source(td, class_name="Written", origin="test"), namespace)
    written = namespace["Written"]()
    assert written.second.weight.std().item() == pytest.approx(0.03, rel=0.15)
    assert written.first.bias.eq(0).all() and torch.isfinite(written(torch.rand(2, *SIZE))).all()


def test_without_values_or_classifier() -> None:
    meta = {c.name: c for c in verify(zoo.lenet_fc().to("meta"), input_size=SIZE).checks}
    assert all(meta[name].skipped for name in (TRAINS, DRAWN, CLASSES))
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1))
    checks = {c.name: c for c in verify(encoder, input_size=SIZE, task="segmentation", num_classes=3).checks}
    assert not [c for c in checks.values() if c.failed]
