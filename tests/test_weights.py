"""Trained networks of the zoo: what is published is what comes back, and what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from td_compiler import ConversionError, TopDownNet, reverse, zoo
from td_compiler.weights import available, publish


def checkpoint(folder: Path, arrangement: str, net: nn.Module, name: str = "zoo:lenet_fc") -> Path:
    """A folder as trainings leave it."""
    folder.mkdir()
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    normalise = {"normalise.mean": torch.full((1, 28, 28), 0.25), "normalise.deviation": torch.full((1, 1, 1), 0.5)}
    tensors = {key: value.contiguous() for key, value in (state | normalise).items()}
    save_file(tensors, folder / "weights.safetensors")
    about: dict[str, Any] = {"input_size": [1, 28, 28], "classes": 10, "train_images": 50}
    network = {"name": name, "arrangement": arrangement, "options": [["merge", "add"]] if arrangement != "bu" else []}
    about["training"] = {"network": network, "data": "mnist", "recipe": {"epochs": 3}, "run": 0}
    (folder / "training.json").write_text(json.dumps(about))
    return folder


def expected(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = net.eval()((images - 0.25) / 0.5)
    return scores


def test_what_is_published_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    bu = zoo.lenet_fc()
    td = reverse(bu, filters="reversed", merge="add", init="fresh")
    published = tmp_path / "published"
    path = publish(checkpoint(tmp_path / "1", "bu", bu), published)
    assert path == published / "lenet_fc_bu-mnist.safetensors"
    publish(checkpoint(tmp_path / "2", "reversed", td), published, {"accuracy": 0.98})
    assert available(published) == ["lenet_fc_bu-mnist", "lenet_fc_td_reversed-mnist"]
    images = torch.rand(3, 1, 28, 28)
    found = zoo.pretrained("lenet_fc_bu", data="mnist", where=published)
    torch.testing.assert_close(found(images), expected(bu, images))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for where in (published, published.as_uri()):
        found = zoo.pretrained("lenet_fc_td_reversed", data="mnist", where=where)
        torch.testing.assert_close(found(images), expected(td, images))
        assert isinstance(found.net, TopDownNet) and not found.training
        assert (found.card["accuracy"], found.card["training"]["epochs"]) == (0.98, 3)
        assert found.card["parameters"] == sum(parameter.numel() for parameter in td.parameters())
    assert len(list((tmp_path / "hub").rglob("*.safetensors"))) == 1


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published, bu = tmp_path / "published", zoo.lenet_fc()
    made = checkpoint(tmp_path / "1", "bu", bu)
    path = publish(made, published)
    with pytest.raises(ConversionError, match="exists: give --force"):
        publish(made, published)
    with pytest.raises(ConversionError, match="there are lenet_fc_bu-mnist; did you mean lenet_fc_bu-mnist"):
        zoo.pretrained("lenet_fc_td", data="mnist", where=published)
    with pytest.raises(ConversionError, match="is damaged or another file"):
        zoo.pretrained("lenet_fc_bu", data="mnist", where=published, sha256="0" * 64)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ConversionError, match="is damaged or another file"):
        zoo.pretrained("lenet_fc_bu", data="mnist", where=published)
    card = path.with_suffix(".json")
    known = json.loads(card.read_text())
    card.write_text(json.dumps({key: value for key, value in known.items() if key != "sha256"}))
    with pytest.raises(ConversionError, match="is no card of a trained network: it has no sha256"):
        zoo.pretrained("lenet_fc_bu", data="mnist", where=published)
    with pytest.raises(ConversionError, match="holds no trained network"):
        publish(tmp_path, published)
    with pytest.raises(ConversionError, match="does not fit nin_light_bu"):
        publish(checkpoint(tmp_path / "2", "bu", bu, "zoo:nin_light"), published)
    with pytest.raises(ConversionError, match="none of the zoo's networks"):
        publish(checkpoint(tmp_path / "3", "bu", bu, "torchvision:resnet18"), published)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(ConversionError, match=r"gives no lenet_fc_bu-mnist\.json"):
        zoo.pretrained("lenet_fc_bu", data="mnist", where=(tmp_path / "nowhere").as_uri())


@pytest.mark.parametrize("name", available())
def test_every_network_of_the_package_loads_and_is_small(name: str) -> None:
    network, _, data = name.partition("-")
    found = zoo.pretrained(network, data=data)
    assert found(torch.rand(1, *found.card["input_size"])).shape == (1, found.card["classes"])
    assert (Path(__file__).parents[1] / "td_compiler/weights" / f"{name}.safetensors").stat().st_size < 1_000_000
