"""Sources: which network a file, a name or a library's name stands for, and what is said where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from td_compiler import ConversionError
from td_compiler.sources.names import SourceError, load_source, model_names, source_name

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, *, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))
"""


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "model.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def built(source: str, **arguments: object) -> Any:
    return load_source(source, arguments).model


def refused(source: str, usage: bool, **arguments: object) -> str:
    with pytest.raises(SourceError) as caught:
        load_source(source, arguments)
    assert isinstance(caught.value, ConversionError)
    assert caught.value.usage is usage
    return str(caught.value)


def test_the_only_class_of_a_file_is_its_model(write: Write) -> None:
    path = write(NET)
    assert built(path, num_classes=3, width=6).fc.weight.shape == (3, 6)
    loaded = load_source(path, {})
    assert (loaded.name, loaded.input_size) == ("model", None)


@pytest.mark.parametrize(
    ("more", "chosen"),
    [
        # blocks that the network uses, imported layers and helpers that return no network are no candidates
        ("class Swish(nn.Module):\n    def forward(self, x): return x\nclass Two(Net):\n    act = Swish\n", "Two"),
        (
            "from torchvision.models import resnet18\ndef main():\n    print(Net())\ndef options():\n    return {}\n",
            "Net",
        ),
        ("class Big(nn.Module):\n    def __init__(self, depth): ...\n    def forward(self, x): return x\n", "Net"),
        ("class Abstract(nn.Module):\n    pass\n", "Net"),
        # a factory that uses the class stands for it, and so does a network made at the module's level
        ("def make(width: int = 5) -> nn.Module:\n    return Net(width=width)\n", "Net"),
        ("model = Net(width=7)\n", "Net"),
    ],
)
def test_building_blocks_are_no_candidates(write: Write, more: str, chosen: str) -> None:
    assert type(built(write(NET + more))).__name__ == chosen


def test_a_factory_without_annotation_counts_where_nothing_else_does(write: Write) -> None:
    text = (
        NET.replace("num_classes=10", "num_classes") + "def small():\n    return Net(4)\ndef train():\n    print(1)\n"
    )
    assert built(write(text)).fc.out_features == 4


def test_several_candidates_are_listed(write: Write) -> None:
    path = write(NET + "class Other(nn.Module):\n    def forward(self, x): return x\ndef make() -> nn.ReLU: ...\n")
    assert f"{path} has 3 candidates: Net, Other, make; name one, e.g. {path}:Net" in refused(path, usage=True)
    loaded = load_source(f"{path}:Other", {})
    assert (loaded.name, type(loaded.model).__name__) == ("Other", "Other")


def test_needed_arguments_are_named(write: Write) -> None:
    path = write(NET.replace("num_classes=10", "num_classes"))
    assert "Net needs num_classes" in refused(path, usage=True)
    assert "needs num_classes: give --arg num_classes=VALUE" in refused(f"{path}:Net", usage=True)
    assert built(path, num_classes=2).fc.out_features == 2


def test_an_unknown_argument_gets_the_accepted_ones(write: Write) -> None:
    message = refused(f"{write(NET)}:Net", usage=True, widht=3)
    assert "no argument 'widht'" in message
    assert "num_classes, width" in message
    assert "did you mean width?" in message
    # through **kwargs, as torchvision's and many users' factories pass them on
    path = write(NET + "def make(**kwargs) -> Net:\n    return Net(**kwargs)\n", "passing.py")
    assert "num_classes, width" in refused(path, usage=True, widht=3)
    assert built(path, width=3).conv.out_channels == 3


def test_relative_and_sibling_imports_work_and_the_path_is_left_as_it_was(write: Write, tmp_path: Path) -> None:
    write("", "pkg/__init__.py")
    write("WIDTH = 9\n", "pkg/relative_to.py")
    write("CLASSES = 8\n", "pkg/beside_the_model.py")
    text = "from .relative_to import WIDTH\nfrom beside_the_model import CLASSES\nimport pkg.relative_to\n"
    path = write(text + NET + "def make() -> Net:\n    return Net(CLASSES, width=WIDTH)\n", "pkg/net.py")
    before = list(sys.path)
    assert built(path).fc.weight.shape == (8, 9)
    assert sys.path == before
    assert "net" not in sys.modules


def test_a_file_is_read_anew_each_time(write: Write) -> None:
    assert built(write(NET)).conv.out_channels == 4
    assert built(write(NET.replace("width=4", "width=12"))).conv.out_channels == 12


def test_what_user_code_prints_goes_to_standard_error(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    load_source(write("print('at import')\n" + NET + "print('made', Net())\n"), {})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "at import" in printed.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef broken(:\n", "model.py:2: SyntaxError"),
        ("\n\nraise KeyError('lost')\n", "KeyError: 'lost' (model.py:3)"),
        ("import missing_package\n", "no module missing_package (model.py:1)"),
        ("import sys\nsys.exit(3)\n", "__main__"),
        ("x = 1\nfrom torch import nn\nclass _Hidden(nn.Module):\n    def forward(self, x): ...\n", "has no model"),
        (
            "from torch import nn\ndef f() -> nn.Module:\n    return 1 / 0\n",
            "ZeroDivisionError: division by zero (model.py:3)",
        ),
        ("from torch import nn\ndef f() -> nn.Module:\n    return 5\n", "returned an object of type int"),
        ("a = '\0'\n", "null bytes"),
    ],
)
def test_a_file_that_gives_no_model_is_refused(write: Write, text: str, said: str) -> None:
    message = refused(write(text), usage=False)
    assert said in message
    assert "model.py" in message


def test_a_command_at_fault_is_told_apart(write: Write, tmp_path: Path) -> None:
    path = write(NET + "size = 3\nready = Net()\n")
    assert "did you mean model.py?" in refused(str(tmp_path / "modle.py"), usage=True)
    assert "is a folder" in refused(str(tmp_path), usage=True)
    assert "not a Python file" in refused(write("", "notes.txt"), usage=True)
    assert ":Nett is not there; did you mean Net?" in refused(f"{path}:Nett", usage=True)
    assert "is of type int, not a model" in refused(f"{path}:size", usage=True)
    assert "takes no --arg" in refused(f"{path}:ready", usage=True, width=3)
    assert "'foo' is neither a file nor one of zoo, torchvision, timm, pytorchcv" in refused("foo:bar", usage=True)
    assert "did you mean zoo:resnet32" in refused("resnet32", usage=True)
    assert "SOURCE is model.py" in refused("nothing_at_all", usage=True)


def test_unknown_names_get_the_nearest() -> None:
    assert "did you mean zoo:resnet32" in refused("zoo:resnet23", usage=True)
    pytest.importorskip("torchvision")
    assert "torchvision:resnet18" in refused("torchvision:resnet81", usage=True)
    assert "`tdc list torchvision`" in refused("torchvision:zzz", usage=True)


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'td-compiler[models]'" in refused("timm:resnet18", usage=False)


def test_zoo_networks_know_their_size_and_build_on_the_meta_device() -> None:
    loaded = load_source("zoo:resnet32", {"num_classes": 7}, device="meta")
    assert loaded.input_size == (3, 32, 32)
    assert all(parameter.is_meta for parameter in loaded.model.parameters())
    # SPEC 4: 467,946 with ten classes, each of them 64 weights and a bias
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 467_946 - 3 * 65


def test_a_model_that_reads_values_is_built_on_the_default_device(write: Write) -> None:
    path = write(NET + "def make() -> Net:\n    return Net(width=int(torch.tensor(3)))\n")
    weight = load_source(path, {}, device="meta").model.get_parameter("conv.weight")
    assert weight.device == torch.device("cpu")
    assert weight.shape[0] == 3


def test_torchvision_models_come_at_their_own_size_without_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads weights"))
    assert load_source("torchvision:resnet18", {}, device="meta").input_size == (3, 224, 224)
    assert load_source("torchvision:inception_v3", {}, device="meta").input_size == (3, 299, 299)
    assert "block, layers, num_classes" in refused("torchvision:resnet18", usage=True, num_clases=3)
    names = model_names("torchvision")
    assert {"resnet18", "vgg11_bn", "mobilenet_v2"} <= set(names)
    assert "fasterrcnn_resnet50_fpn" not in names  # no classifier


def test_timm_models_come_at_their_own_size() -> None:
    pytest.importorskip("timm")
    assert load_source("timm:efficientnet_b1", {}, device="meta").input_size == (3, 240, 240)  # as published
    loaded = load_source("timm:resnet10t.c3_in1k", {"in_chans": 1}, device="meta")
    assert (loaded.name, loaded.input_size) == ("resnet10t_c3_in1k", (1, 176, 176))
    assert isinstance(loaded.model, nn.Module)


def test_pytorchcv_models_come_at_their_own_size() -> None:
    pytest.importorskip("pytorchcv")
    assert load_source("pytorchcv:xception", {}, device="meta").input_size == (3, 299, 299)
    assert load_source("pytorchcv:nin_cifar10", {"in_channels": 1}, device="meta").input_size == (1, 32, 32)
    assert load_source("pytorchcv:tresnet_m", {}, device="meta").input_size == (3, 224, 224)
    assert "did you mean pytorchcv:darknet53" in refused("pytorchcv:darknet35", usage=True)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("zoo:resnet32", "resnet32"),
        ("a/my-model.py", "my_model"),
        ("a/model.py:Net", "Net"),
        ("timm:resnet18.a1_in1k", "resnet18_a1_in1k"),
        ("3d.py", "_3d"),
    ],
)
def test_names_are_identifiers(source: str, name: str) -> None:
    assert source_name(source) == name
    assert name.isidentifier()


NAMED = """
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.conv(x)

    @classmethod
    def from_name(cls, name):
        return cls({"small": 4, "big": 8}[name])
"""


def test_files_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tdc", "convert", "model.py"])
    Path("models").mkdir()
    Path("common.py").write_text("WIDTH = 5\n")
    files = {
        "models/relative.py": f"from torch import nn\nfrom ..common import WIDTH\n{NAMED}",
        "arguments.py": "import argparse\nfrom torch import nn\nparser = argparse.ArgumentParser()\n"
        f"parser.add_argument('--lr', default=0.1)\nlr = parser.parse_args().lr\n{NAMED}",
        "script.py": f"import torch\nfrom torch import nn\n{NAMED}\nnet = Net()\nnet(torch.zeros(1, 3, 8, 8)).sum()",
    }
    for name, text in files.items():
        Path(name).write_text(text)
        assert type(load_source(f"{name}:Net", {}).model).__name__ == "Net"
    assert sys.argv == ["tdc", "convert", "model.py"]
    named = load_source("script.py:Net.from_name", {"name": "big"})
    assert (named.name, named.model.conv.out_channels) == ("Net_from_name", 8)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("import a_logger\n", "", "there is no module a_logger (model.py:1): pip install what has it, or import it in"),
        ("raise OSError('no network')\n", "", "(model.py:1); guard what is no definition by if __name__"),
        ("class A:\n    raise OSError('no network')\n", "", "OSError: no network (model.py:2)$"),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--data', required=True)\np.parse_args()\n",
            "",
            "it reads a command line, and the following arguments are required: --data (model.py:4); guard",
        ),
        (f"from torch import nn\n{NAMED}", ":Net.from_name", "needs name: give --arg name=VALUE."),
        (f"from torch import nn\n{NAMED}", ":Net.from_nam", "is not there; did you mean from_name?"),
        (f"from torch import nn\n{NAMED}", ":No.from_name", "is not there"),
        (f"from torch import nn\n{NAMED}\ndef f(cfg, n): return Net()", ":f", "give --arg cfg=VALUE --arg n=VALUE."),
        (
            f"from torch import nn\n{NAMED.replace('=4', '')}",
            "",
            "give --arg, or write a function that makes the network",
        ),
    ],
)
def test_what_a_file_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(text)
    with pytest.raises(SourceError) as raised:
        load_source(f"model.py{name}", {})
    assert str(raised.value).endswith(said[:-1]) if said.endswith("$") else said in str(raised.value)
