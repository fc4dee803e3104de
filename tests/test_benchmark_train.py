"""`tdc train`: what it writes, what it goes on from, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import td_compiler
from td_compiler.benchmarks import extra
from td_compiler.benchmarks.training import training
from td_compiler.cli.app import app
from td_compiler.sources.names import load_source
from tests.support.benchmark_data import CLASSES, NETWORKS, write_folder


def tdc(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        app(["train", *words])
    assert isinstance(done.value.code, int)
    return done.value.code


def test_train_writes_weights_that_fit_the_conversion(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accuracy that it tells is that of the weights in the network that reverse makes, images as the file says."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    folder, net = write_folder(tmp_path / "set"), f"{tmp_path / 'nets.py'}:Normed"
    options = [net, "--data", f"folder:{folder}@32", "--out", str(tmp_path / "out"), "--no-progress", "--device", "cpu"]
    options += ["--epochs", "3", "--recipe", "batch_size=4"]
    assert tdc(*options) == 0
    about = json.loads((tmp_path / "out" / "Normed_td.json").read_text())
    weights = load_file(tmp_path / "out" / "Normed_td.safetensors")
    assert (about["classes"], about["recipe"]["label"], about["recipe"]["epochs"]) == (list(CLASSES), "fast", 3)
    assert str(tmp_path / "out") not in about["command"] and about["test_images"] == 18

    source = load_source(net, {"num_classes": 3, "in_channels": 3}).model
    network = td_compiler.reverse(source, input_size=(3, 32, 32))
    network.load_state_dict(weights, strict=True)
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    pictures = ImageFolder(str(folder / "test"))
    images = torch.stack([pil_to_tensor(picture) for picture, _ in pictures]).float() / 255
    mean, deviation = (torch.tensor(about["normalise"][name]) for name in ("mean", "deviation"))
    with torch.no_grad():
        found = network.eval()((images - mean) / deviation).argmax(1)
    assert (found == torch.tensor(pictures.targets)).double().mean().item() == pytest.approx(about["accuracy"])

    assert tdc(*options) == 2 and "exists: --force replaces it" in capfd.readouterr().err
    monkeypatch.setattr(training, "_train", None)  # what is there is not trained again
    assert tdc(*options, "--force") == 0
    assert json.loads((tmp_path / "out" / "Normed_td.json").read_text()) == about | {
        "command": about["command"] + " --force"
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "folder:/nowhere"], "There is no folder in"),
        (["--data", "SET", "--filters", "bu"], "'bu' is not one of mirror"),
        (["--data", "SET", "--teacher", "mirror"], "'mirror' is no teacher"),
        (["--data", "SET", "--recipe", "fats"], "'fats' is neither fast nor NAME=VALUE"),
        (["--data", "SET", "--runs", "3"], "No such option"),
        ([], "Missing option"),
    ],
)
def test_train_refuses_in_one_line(
    tmp_path: Path, words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets.py").write_text(NETWORKS)
    words = [f"folder:{write_folder(tmp_path / 'set')}@32" if word == "SET" else word for word in words]
    assert tdc(f"{tmp_path / 'nets.py'}:Net", *words, "--out", str(tmp_path / "out"), "--device", "cpu") == 2
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_train_without_the_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    assert tdc("zoo:lenet_fc", "--data", "mnist") == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "pip install 'td-compiler[bench]'" in error
