"""Checkpoints of bottom-up networks in their top-down networks: what fits is loaded, all else is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from td_compiler import ConversionError, load_bottom_up, reverse, zoo

STATE = "layer2.1.conv1.weight"


def networks(**options: Any) -> tuple[nn.Module, Any, dict[str, torch.Tensor]]:
    """A network, the top-down network of another one of its kind, and its values before anything was loaded."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=6)
    td = reverse(torchvision.models.resnet18(num_classes=6), input_size=(3, 64, 64), **options)
    return model, td, {name: value.clone() for name, value in td.state_dict().items()}


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    ("prefix", "nest"),
    [
        ("", ()),
        ("module.", ("state_dict",)),
        ("model.", ("state_dict",)),
        ("module._orig_mod.", ("model",)),
        ("_orig_mod.", ()),
        ("net.backbone.", ("model", "state_dict")),
    ],
)
def test_prefixes_and_nests_make_no_difference(prefix: str, nest: tuple[str, ...]) -> None:
    model, td, before = networks()
    source = model.state_dict()
    state: dict[str, Any] = wrapped(source, prefix)
    for name in reversed(nest):
        state = {"epoch": 3, "optimizer": {"state": {}}, name: state}
    report = load_bottom_up(td, state)
    after = td.state_dict()
    expected = {name for name in after if name in source and source[name].shape == after[name].shape}
    assert {row.name for row in report.of("loaded")} == expected and len(expected) > 80
    for name, value in after.items():
        assert torch.equal(value, source[name] if name in expected else before[name]), name
    assert {row.name for row in report.of("new")} >= {"entry.1.conv.weight", "merge.4.conv.weight"}
    assert {row.name.removeprefix(prefix.replace("_orig_mod.", "")) for row in report.of("left out")} >= {
        "conv1.weight",
        "bn1.weight",
    }
    assert not report.of("missing")


def test_every_tensor_is_told_of_with_its_reason() -> None:
    _, td, _ = networks(num_classes=9)
    model = torchvision.models.resnet18(num_classes=6)
    state = model.state_dict()
    del state[STATE]
    state["extra.weight"] = torch.zeros(3)
    report = load_bottom_up(td, state)
    assert len(report.tensors) == len(td.state_dict()) + len(report.of("left out"))
    assert [row.name for row in report.of("missing")] == [STATE]
    fc = next(row for row in report.tensors if row.name == "fc.bias")
    assert (fc.outcome, fc.shape, fc.given) == ("other shape", (9,), (6,)) and "shapes differ" in fc.reason
    assert any(row.name == "extra.weight" and row.given == (3,) for row in report.of("left out"))
    text = str(report)
    assert f"{len(report.of('loaded'))} of {len(td.state_dict())} tensors loaded." in text
    assert "fc.bias" in text and "6 -> 9" in text and STATE in text


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_files_are_read(tmp_path: Path, kind: str) -> None:
    model, td, _ = networks()
    path = tmp_path / f"checkpoint.{kind}"
    if kind == "pt":
        torch.save({"state_dict": model.state_dict(), "epoch": 1}, path)
    else:
        save_file(model.state_dict(), path)
    assert len(load_bottom_up(td, path).of("loaded")) > 80
    assert torch.equal(td.state_dict()[STATE], model.state_dict()[STATE])


def test_a_whole_loaded_network_computes_as_a_conversion_of_it() -> None:
    """Where everything that is not new was loaded, only the new layers differ."""
    torch.manual_seed(0)
    model = zoo.ZOO["resnet32"]()
    td, other = reverse(model).eval(), reverse(zoo.ZOO["resnet32"]()).eval()
    report = load_bottom_up(other, model.state_dict())
    other.load_state_dict({row.name: td.state_dict()[row.name] for row in report.of("new")}, strict=False)
    assert not report.of("missing")
    left = {row.name for row in report.of("other shape")}
    other.load_state_dict({name: td.state_dict()[name] for name in left}, strict=False)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(other(images), td(images))


class Renamed(nn.Module):
    """A network whose layers have names that are the top-down network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, 8, 3, padding=1)
        self.merge = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.merge(torch.relu(self.entry(x))).mean((2, 3)))
        return scores


def test_layers_that_got_another_name_are_found() -> None:
    model = Renamed()
    td = reverse(Renamed(), input_size=(3, 16, 16))
    report = load_bottom_up(td, model.state_dict())
    loaded = {row.name for row in report.of("loaded")}
    renamed = [name for name in td.state_dict() if name.startswith(("entry_.", "merge_."))]
    assert renamed and loaded & set(renamed)
    for name in loaded:
        first, _, rest = name.partition(".")
        assert torch.equal(td.state_dict()[name], model.state_dict()[f"{first.rstrip('_')}.{rest}"])


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"other.weight": torch.zeros(3)}, "nothing of the checkpoint fits: it has other.weight"),
        ({"epoch": 3}, "holds no tensors by name"),
        ("missing.pt", "missing.pt cannot be read as a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_of_the_network_is_refused(state: Any, words: str) -> None:
    td = reverse(zoo.ZOO["lenet_fc"]())
    with pytest.raises(ConversionError, match=words):
        load_bottom_up(td, state)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    td = reverse(zoo.ZOO["lenet_fc"]())
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # pickled code, which is not run
    for name in ("text.pt", "module.pt"):
        with pytest.raises(ConversionError, match=f"{name} cannot be read"):
            load_bottom_up(td, tmp_path / name)
