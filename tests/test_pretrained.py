"""A network as a folder: it comes back with the same bits, alone, and nothing runs or is replaced unasked."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from td_compiler import ConversionError, TopDownNet, from_pretrained, fuse, reverse, zoo

FILES = {"config.json", "modeling_td.py", "model.safetensors"}

# Runs in the folder, where neither td_compiler nor the source network's library can be imported.
ALONE = """
import sys
sys.modules["td_compiler"] = sys.modules["torchvision"] = sys.modules["timm"] = None
sys.path.insert(0, ".")
import modeling_td, safetensors.torch, torch
torch.set_num_threads(int(sys.argv[1]))
model = modeling_td.ResNetTD()
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
images, expected = torch.load("io.pt", weights_only=True)
with torch.no_grad():
    assert torch.equal(model.eval()(images), expected)
"""


def make_resnet() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)


class Shared(nn.Module):
    """One convolution in two places, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = self.first
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(self.stem(x)).relu()).relu()
        return self.fc(self.down(x).relu().mean((2, 3)))


def mixed() -> TopDownNet:
    """A network whose convolutions are of one type and whose classifier is of another."""
    td = reverse(zoo.resnet(8))
    td.get_submodule("merge.1.conv").to(torch.bfloat16)
    return td


@pytest.fixture(scope="module")
def td() -> TopDownNet:
    torch.manual_seed(0)
    return reverse(make_resnet(), filters="uniform", input_size=(3, 64, 64)).eval()


@pytest.fixture
def folder(td: TopDownNet, tmp_path: Path) -> Path:
    return td.save_pretrained(tmp_path / "hub" / "td")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 45, 61, generator=torch.Generator().manual_seed(1))


def test_the_folder_says_what_the_network_is(td: TopDownNet, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert (config["source"], config["class_name"], config["input_size"]) == ("ResNet", "ResNetTD", [3, 64, 64])
    assert config["scales"] == list(td.scales)
    assert config["options"]["filters"] == "uniform" and config["options"]["downsample"] == "gaussian"
    assert "torchvision" not in (folder / "modeling_td.py").read_text()


def test_the_same_bits_come_back(td: TopDownNet, folder: Path, images: torch.Tensor) -> None:
    model = from_pretrained(folder, trust_code=True)
    assert not isinstance(model, TopDownNet) and not model.training
    assert torch.equal(model(images), td(images))
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), td(images))


def test_it_works_where_td_compiler_is_not_installed(td: TopDownNet, folder: Path, images: torch.Tensor) -> None:
    with torch.no_grad():
        torch.save((images, td(images)), folder / "io.pt")
    command = [sys.executable, "-I", "-c", ALONE, str(torch.get_num_threads())]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


VARIANTS: dict[str, Callable[[], TopDownNet]] = {
    "bfloat16": lambda: reverse(zoo.resnet(8).to(torch.bfloat16)),
    "float64": lambda: reverse(zoo.nin_light().double()),
    "mixed": mixed,
    "shared": lambda: reverse(Shared(), input_size=(3, 16, 16)),
    "fused": lambda: fuse(reverse(zoo.resnet(8))),
    "channels_last": lambda: reverse(zoo.resnet(8)).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_tensor_comes_back(variant: str, tmp_path: Path) -> None:
    td = VARIANTS[variant]().eval()
    td.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path, trust_code=True)
    before, after = td.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype and torch.equal(after[name], value), name
    assert len(list(model.parameters())) == len(list(td.parameters()))


def test_shared_layers_stay_shared(tmp_path: Path) -> None:
    td = reverse(Shared(), input_size=(3, 16, 16)).eval()
    model = from_pretrained(td.save_pretrained(tmp_path), trust_code=True)
    x = torch.randn(1, 3, 17, 16)
    for network in (td, model):
        with torch.no_grad():
            network.get_parameter("first.weight").mul_(1.5)
    assert torch.equal(model(x), td(x))


def test_nothing_is_replaced_unasked(td: TopDownNet, folder: Path, images: torch.Tensor) -> None:
    other = copy.deepcopy(td)
    with torch.no_grad():
        other.get_parameter("fc.bias").add_(1)
    before = {name: (folder / name).read_bytes() for name in FILES}
    with pytest.raises(ConversionError, match=r"config\.json exists: give overwrite=True"):
        other.save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    other.save_pretrained(folder, overwrite=True)
    assert torch.equal(from_pretrained(folder, trust_code=True)(images), other(images))


def test_a_write_that_fails_leaves_the_old_folder(
    td: TopDownNet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("td_compiler.network.pretrained.save_file", full)
    with pytest.raises(ConversionError, match="cannot be written: No space left"):
        td.save_pretrained(folder, overwrite=True)
    with pytest.raises(ConversionError, match="cannot be written"):
        td.save_pretrained(folder / "new")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_networks_without_weights_are_not_written(tmp_path: Path) -> None:
    with torch.device("meta"):
        td = reverse(zoo.resnet(8))
    with pytest.raises(ConversionError, match="meta device"):
        td.save_pretrained(tmp_path / "td")
    assert not (tmp_path / "td").exists()


def test_code_runs_only_if_trusted(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "modeling_td.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(ConversionError, match="give trust_code=True if you trust it"):
        from_pretrained(folder)
    with pytest.raises(ConversionError, match=r"is not the code that config\.json was written with"):
        from_pretrained(folder, trust_code=True)
    assert not mark.exists()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConversionError, match=f"has no {name}"):
        from_pretrained(folder, trust_code=True)


def test_a_broken_configuration_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for content, message in (
        ("{", "cannot be read"),
        ("[]", "has format None"),
        (json.dumps({**config, "format": 99}), "has format 99, this td-compiler"),
        (json.dumps({**config, "class_name": None}), "says no class_name"),
        (json.dumps({**config, "class_name": "Other"}), "defines no network Other"),
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(ConversionError, match=message):
            from_pretrained(folder, trust_code=True)


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "fc.weight": torch.zeros(8, 3)}, weights)
    with pytest.raises(ConversionError, match=r"does not fit modeling_td\.py.*fc\.weight.*\[8, 3\]"):
        from_pretrained(folder, trust_code=True)
    save_file({name: value for name, value in state.items() if name != "fc.bias"}, weights)
    with pytest.raises(ConversionError, match=r'Missing key.*"fc\.bias"'):
        from_pretrained(folder, trust_code=True)
    weights.write_bytes(b"no tensors")
    with pytest.raises(ConversionError, match="cannot be read"):
        from_pretrained(folder, trust_code=True)
