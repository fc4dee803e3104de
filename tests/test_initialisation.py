"""First values travel (SPEC 8.4): what the values of a network show, and what new networks are drawn by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from td_compiler import reverse, zoo
from td_compiler.emission import emit_source
from td_compiler.graph.initialisation import read_initialisation
from td_compiler.graph.laws import Law
from td_compiler.network.base import TopDownNet

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet50, last norms zero": lambda: torchvision.models.resnet50(zero_init_residual=True),
    "convnext_tiny": torchvision.models.convnext_tiny,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "densenet121": torchvision.models.densenet121,
    "regnet_y_400mf": torchvision.models.regnet_y_400mf,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "squeezenet1_0": torchvision.models.squeezenet1_0,
    "mnasnet0_5": torchvision.models.mnasnet0_5,
    "timm efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "timm regnety_004": lambda: timm.create_model("regnety_004"),
    **zoo.ZOO,
}


def emitted(td: TopDownNet) -> nn.Module:
    """An instance of the emitted class, made afresh."""
    namespace: dict[str, Any] = {"__name__": "emitted"}
    exec(compile(emit_source(td, class_name="Net", origin="test"), "emitted", "exec"), namespace)
    network = namespace["Net"]()
    assert isinstance(network, nn.Module)
    return network


def spread(value: torch.Tensor, fan: Callable[[torch.Tensor], float]) -> float:
    return float(value.double().square().mean().sqrt()) * math.sqrt(fan(value))


def into(weight: torch.Tensor) -> float:
    return weight[0].numel() if weight.dim() > 1 else 1.0


def out(weight: torch.Tensor) -> float:
    return weight[:, 0].numel() if weight.dim() > 1 else 1.0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_network_is_drawn_as_the_source(name: str) -> None:
    """Every tensor of both fresh networks that the source has too, in its shape, has the source's spread and mean.

    What has another shape or is new has, within its kind, the spread that follows the same number of connections.
    """
    torch.manual_seed(0)
    model = NETWORKS[name]()
    source = dict(model.named_parameters())
    kept = reverse(model)
    for fresh in (reverse(model, init="fresh"), emitted(kept)):
        state = dict(fresh.named_parameters())
        assert state.keys() == dict(kept.named_parameters()).keys()
        for path, value in state.items():
            assert value.isfinite().all(), path
            like = source.get(path)
            if like is None or like.shape != value.shape:
                continue
            if bool((like == like.flatten()[0]).all()):
                assert torch.equal(value, like), path
            elif like.dim() > 1:  # a bias of torch's own kind follows the connections of its weight
                assert not torch.equal(value, like), path
                error = 6 / math.sqrt(like.numel())
                assert value.std().item() == pytest.approx(like.std().item(), rel=error + 0.01), path
                assert abs(value.mean() - like.mean()) < 1.5 * error * like.std(), path
        for (kind, which), expected in _spreads(source).items():
            assert _spreads(state).get((kind, which)) == pytest.approx(expected, rel=0.05), (kind, which)


def _spreads(tensors: dict[str, nn.Parameter]) -> dict[tuple[str, str], float]:
    """The spread of filters in units of 1 / sqrt(connections), where it is one number for all large ones of a kind."""
    found = {}
    for which, fan in {"in": into, "out": out, "none": lambda _: 1.0}.items():
        for kind, is_kind in {"dense": lambda v: v.shape[1] > 8, "depthwise": lambda v: v.shape[1] == 1}.items():
            large = [v for v in tensors.values() if v.dim() == 4 and is_kind(v) and v.numel() > 2**12]
            spreads = [spread(value.detach(), fan) for value in large]
            if len(spreads) > 2 and max(spreads) < 1.1 * min(spreads):
                found[kind, which] = sum(spreads) / len(spreads)
    return found


class Plain(nn.Sequential):
    """Three convolutions and a linear layer, 240 to 4,608 weights each, drawn by a function of torch's."""

    def __init__(self, draw: Callable[[torch.Tensor], object] | None = None) -> None:
        super().__init__(
            *(nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )
        for module in self.modules():
            if draw is not None and isinstance(module, (nn.Conv2d, nn.Linear)):
                draw(module.weight)


DRAWS: list[tuple[Callable[[torch.Tensor], object] | None, Law]] = [
    (None, Law("uniform", math.sqrt(1 / 3), "in")),
    (nn.init.kaiming_normal_, Law("normal", math.sqrt(2), "in")),
    (lambda w: nn.init.kaiming_normal_(w, mode="fan_out"), Law("normal", math.sqrt(2), "out")),
    (nn.init.kaiming_uniform_, Law("uniform", math.sqrt(2), "in")),
    (nn.init.xavier_uniform_, Law("uniform", 1.0, "mean")),
    (nn.init.xavier_normal_, Law("normal", 1.0, "mean")),
    (lambda w: nn.init.xavier_uniform_(w, gain=5 / 3), Law("uniform", 5 / 3, "mean")),
    (nn.init.orthogonal_, Law("orthogonal", 1.0)),
    (lambda w: nn.init.normal_(w, std=0.02), Law("normal", 0.02)),
    (lambda w: nn.init.trunc_normal_(w, std=0.02), Law("normal", 0.02)),
    (lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04), Law("truncated", 0.02)),
    (lambda w: nn.init.uniform_(w, -0.05, 0.05), Law("uniform", 0.05)),
    (nn.init.zeros_, Law("constant", 0.0)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("draw", "law"), DRAWS, ids=lambda value: str(value) if isinstance(value, Law) else "")
def test_small_layers_show_their_law_together(
    draw: Callable[[torch.Tensor], object] | None, law: Law, dtype: torch.dtype
) -> None:
    if law.shape == "orthogonal" and dtype != torch.float32:
        law = Law("normal", 1.0, "in")  # what is left of it
    for seed in range(3):
        torch.manual_seed(seed)
        found = read_initialisation(Plain(draw).to(dtype)).of_source
        assert {found[f"{i}.weight"] for i in (0, 4, 8, 12)} == {law}
        assert {found[f"{i}.weight"] for i in (1, 5)} == {Law("constant", 1.0)}


def trained(model: nn.Module) -> nn.Module:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,))
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model


def test_trained_weights_show_nothing_and_the_report_says_so() -> None:
    torch.manual_seed(0)
    model = trained(Plain(lambda w: nn.init.normal_(w, std=0.05)))
    td = reverse(model, input_size=(1, 28, 28))
    assert any("as if they had been trained" in note for note in td.report.notes)
    merge = emitted(td).get_submodule("merge.1.conv").weight
    assert merge.std().item() == pytest.approx(math.sqrt(2 / into(merge)), rel=0.1)  # type: ignore[operator]
    meta = reverse(Plain().to("meta"), input_size=(1, 28, 28))
    assert not any("trained" in note for note in meta.report.notes)


class Redrawn(Plain):
    """A network with a method that draws all of its values."""

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=0.07)
                nn.init.constant_(module.bias, 0.5)


def test_a_trained_network_is_asked_for_its_own_way_to_draw() -> None:
    torch.manual_seed(0)
    model = trained(Redrawn())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    td = reverse(model, input_size=(1, 28, 28), init="fresh")
    for name, value in {"merge.1.conv": 0.5, "4": 0.5}.items():
        layer = td.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(0.07, rel=0.15)  # type: ignore[operator]
        assert (layer.bias == value).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Mixed(nn.Module):
    """Depthwise filters N(0, 0.1), pointwise ones Xavier, a scale of 1e-5, a bias of classes at -4.6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.Sequential(*(MixedBlock() for _ in range(4)))
        self.fc = nn.Linear(32, 10)
        nn.init.xavier_normal_(self.stem.weight)
        nn.init.constant_(self.fc.bias, -4.6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.blocks[:2](self.stem(x)), 2)
        scores: torch.Tensor = self.fc(self.blocks[2:](x).mean((2, 3)))
        return scores


class MixedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise = nn.Conv2d(32, 32, 1)
        self.norm = nn.BatchNorm2d(32)
        self.scale = nn.Parameter(torch.full((32, 1, 1), 1e-5))
        nn.init.normal_(self.spatial.weight, std=0.1)
        nn.init.xavier_normal_(self.pointwise.weight)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.norm(self.pointwise(self.spatial(x)))


def test_layers_that_differ_within_a_kind_keep_their_own_laws() -> None:
    torch.manual_seed(0)
    td = reverse(Mixed(), input_size=(3, 16, 16))
    for network in (emitted(td), reverse(Mixed(), input_size=(3, 16, 16), init="fresh")):
        for i in range(4):
            block = network.get_submodule(f"blocks.{i}")
            assert block.spatial.weight.std().item() == pytest.approx(0.1, rel=0.2)  # type: ignore[operator]
            assert block.pointwise.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.15)  # type: ignore[operator]
            assert (block.scale == 1e-5).all() and not block.norm.weight.any()  # type: ignore[operator]
        merge = network.get_submodule("merge.1.conv").weight
        assert merge.std().item() == pytest.approx(math.sqrt(2 / (into(merge) + out(merge))), rel=0.1)  # type: ignore[operator]
        assert torch.allclose(network.get_submodule("fc").bias, torch.tensor(-4.6))


def test_a_merge_is_never_silent() -> None:
    """Norms that are zero at the end of branches are zero there alone."""
    td = reverse(torchvision.models.resnet50(zero_init_residual=True), init="fresh")
    for network in (td, emitted(td)):
        assert (network.get_submodule("merge.4.norm").weight == 1).all()
        assert not network.get_submodule("layer4.0.bn3").weight.any()  # type: ignore[operator]
