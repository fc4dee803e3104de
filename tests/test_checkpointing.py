"""Training with checkpointed stages is training without, in less memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from td_compiler import TopDownNet, reverse, zoo

Maker = Callable[[], nn.Module]


def step(td: TopDownNet, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of one training step by name, and the bytes that its forward pass saved for its backward pass."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = td(images).square().sum()
    loss.backward()
    return {name: p.grad for name, p in td.named_parameters() if p.grad is not None}, sum(saved.values())


def without_momentum() -> nn.Module:
    """A network whose batch norms average over all batches, which counts the batches."""
    model = zoo.lenet_fc()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    return model


CASES: list[tuple[Maker, tuple[int, ...]]] = [
    (zoo.nin_light, (4, 1, 28, 28)),  # has dropout
    (lambda: torchvision.models.resnet18(num_classes=5), (3, 3, 40, 33)),
    (without_momentum, (4, 1, 27, 29)),
]


@pytest.mark.parametrize(("maker", "shape"), CASES, ids=["nin_light", "resnet18", "without-momentum"])
def test_gradients_statistics_and_dropout_are_the_same(maker: Maker, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = reverse(maker()).train()
    checkpointed = copy.deepcopy(plain).checkpoint_stages()
    images = torch.randn(*shape)
    for _ in range(2):
        expected, held = step(plain, images)
        found, kept = step(checkpointed, images)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert kept < 0.3 * held, (kept, held)  # the head's, and the last map
    before, after = plain.state_dict(), checkpointed.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {int(value) for name, value in after.items() if name.endswith("num_batches_tracked")} == {2}


def test_stages_are_chosen_by_scale_and_name() -> None:
    td = reverse(zoo.nin_light()).train()
    images = torch.randn(2, 1, 28, 28)
    bytes_of = {}
    for choice in (False, (4,), ["stage2"], (1, "stage2"), True):
        assert td.checkpoint_stages(choice) is td
        bytes_of[choice if isinstance(choice, bool) else tuple(choice)] = step(td, images)[1]
    assert bytes_of[False] > bytes_of[4,] > bytes_of["stage2",] > bytes_of[1, "stage2"] > bytes_of[True]
    assert td.checkpointed == {"stage1", "stage2", "stage4"}
    with pytest.raises(ValueError, match="no stage 3, only 4, 2, 1, 'stage4'"):
        td.checkpoint_stages([1, 3])


def test_copies_keep_the_choice_and_evaluation_ignores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    td = reverse(zoo.lenet_fc()).checkpoint_stages([1]).eval()
    images = torch.randn(2, 1, 28, 28)
    for twin in (copy.deepcopy(td), pickle.loads(pickle.dumps(td))):
        assert twin.checkpointed == {"stage1"}
        assert twin.state_dict().keys() == td.state_dict().keys()
    with torch.no_grad():
        expected = td(images)
    monkeypatch.setattr("td_compiler.network.base.run_checkpointed", None)  # calling it would fail
    with torch.no_grad():
        assert torch.equal(td(images), expected)


def test_a_frozen_norm_stays_frozen() -> None:
    """A norm in evaluation mode inside a network in training mode uses its statistics, both times."""
    torch.manual_seed(0)
    plain = reverse(zoo.lenet_fc()).train()
    norm = plain.entry["1"].norm.eval()
    nn.init.uniform_(norm.running_mean)
    checkpointed = copy.deepcopy(plain).checkpoint_stages()
    images = torch.randn(3, 1, 28, 28)
    (expected, _), (found, _) = step(plain, images), step(checkpointed, images)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(checkpointed.entry["1"].norm.running_mean, norm.running_mean)


def test_compiled() -> None:
    """One graph, the same gradients, statistics updated once."""
    torch.manual_seed(0)
    plain = reverse(zoo.lenet_fc()).train()
    checkpointed = copy.deepcopy(plain).checkpoint_stages()
    images = torch.randn(4, 1, 28, 28)
    plain(images).square().sum().backward()
    torch.compile(checkpointed, backend="aot_eager", fullgraph=True)(images).square().sum().backward()
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for statistic, expected in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(statistic, expected)
