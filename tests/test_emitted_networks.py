"""Emitted source of real networks: stands alone, loads strictly, computes the same bits, is clean by ruff."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from td_compiler import reverse, zoo
from td_compiler.emission import emit_source
from tests.support.vgg import torchvision_network

ARRANGEMENTS = ("mirror", "uniform", "reversed")
ZOO = ("lenet_fc", "nin_light", "nin", "resnet32", "resnet18_light")
TORCHVISION = ("resnet18", "resnet34", "resnet50", "vgg11_bn", "vgg16", "mobilenet_v2")

# Runs where td_compiler cannot be imported: every folder given holds source, state, images and the expected scores.
CHECK = """
import importlib.util, sys
from pathlib import Path
import torch

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("td_compiler", "torchvision", "timm"):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Blocker())
torch.set_num_threads(int(sys.argv[1]))  # sums are split by threads: equal bits need as many as the writer had
for folder in map(Path, sys.argv[2:]):
    spec = importlib.util.spec_from_file_location("emitted", folder / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Network()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True), strict=True)
    images, expected = torch.load(folder / "io.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), expected), f"{folder.name}: other bits"
        levels, last = model.pyramid(images), model.forward_features(images)
        assert [tuple(level.shape[-2:]) for level in levels] == [
            tuple(-(-side // scale) for side in images.shape[-2:]) for scale in model.scales
        ]
        assert len(model.stage_maps(levels)) == len(levels) and torch.equal(model.stage_maps(levels)[-1], last)
        assert torch.equal(model.forward_pyramid(levels), expected) and last.shape[1] == model.num_features
        read = model.forward_head(last, pre_logits=True)
        assert read.shape[1] == model.head_hidden_size, f"{folder.name}: {read.shape} before the classifier"
        if read.dim() == 2:  # else the classifier stands in front of the pooling
            assert torch.equal(model.get_classifier()(read), expected)
        assert expected.shape[1] == model.num_classes
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), expected, msg=f"{folder.name}: a trace")
        fired = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name: fired.append(name))
            for name, module in model.named_modules()
            if name.startswith(("layer", "merge.", "entry."))
        ]
        model(images)
        assert len(set(fired)) == len(hooks), f"{folder.name}: silent modules"
        for hook in hooks:
            hook.remove()
        other = module.Network(num_classes=7, in_chans=2).eval()
        assert other(images[:, :1].repeat(1, 2, 1, 1)).shape == (len(images), 7)
        other.reset_classifier(0)
        assert other.forward_head(last).shape[:2] == read.shape[:2] and other.num_classes == 0
        other.reset_classifier(3)
        assert other(images[:, :1].repeat(1, 2, 1, 1)).shape == (len(images), 3)
        assert module.Network(num_classes=0).eval()(images).shape[1] == read.shape[1]
    print("same", folder.name)
"""


def write(folder: Path, model: nn.Module, images: torch.Tensor, **options: object) -> None:
    td = reverse(model, **options).eval()
    folder.mkdir()
    (folder / "network.py").write_text(emit_source(td, class_name="Network", origin=folder.name))
    torch.save(td.state_dict(), folder / "state.pt")
    with torch.no_grad():
        torch.save((images, td(images)), folder / "io.pt")


def check(folder: Path) -> None:
    """All networks below a folder, in one other Python, and by ruff's default rules."""
    folders = sorted(map(str, folder.iterdir()))
    command = [sys.executable, "-I", "-c", CHECK, str(torch.get_num_threads()), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same ") == len(folders)
    for action in (["check", "--select", "E,F,I,UP"], ["format", "--check"]):
        run = [sys.executable, "-m", "ruff", action[0], "--isolated", "--line-length=120", *action[1:], str(folder)]
        linted = subprocess.run(run, capture_output=True, text=True, check=False)
        assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("filters", ARRANGEMENTS)
def test_papers_networks(tmp_path: Path, filters: str) -> None:
    torch.manual_seed(0)
    for name in ZOO:
        model = zoo.ZOO[name]()
        channels, height, width = model.input_size
        write(tmp_path / name, model, torch.randn(2, channels, height + 1, width - 1), filters=filters)
    check(tmp_path)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    for filters in ARRANGEMENTS:
        model = torchvision_network(name, num_classes=4)
        write(tmp_path / filters, model, torch.randn(1, 3, 25, 19), filters=filters)
    check(tmp_path)


OPTIONS: dict[str, list[str]] = {
    "merge": ["add", "concat"],
    "upsample": ["bilinear", "transposed"],
    "downsample": ["blur", "blurpool", "pool", "none", "area", "laplacian"],
    "stem": ["leading"],
}


def test_every_option(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for option, values in OPTIONS.items():
        for value, factory in itertools.product(values, (zoo.resnet20, zoo.lenet_fc, zoo.resnet18_light)):
            model = factory()
            folder = tmp_path / f"{option}_{value}_{factory.__name__}"
            write(folder, model, torch.randn(1, model.input_size[0], 21, 26), **{option: value})
    check(tmp_path)


def test_rates_of_dropping_are_arguments_and_drop_what_the_source_drops() -> None:
    blocks = [CNBlockConfig(8, 16, 3), CNBlockConfig(16, 24, 4), CNBlockConfig(24, None, 3)]
    torch.manual_seed(0)
    model = ConvNeXt(blocks, stochastic_depth_prob=0.6, layer_scale=0.5, num_classes=4)
    td = reverse(model, fast=False).train()
    source = emit_source(td, class_name="Network", origin="convnext")
    assert "drop_path_rate: float = 0.6" in source
    assert "for p in rates[3:7]]" in source
    assert "class DropPath(nn.Module):" in source
    assert "class StochasticDepth" not in source
    scope: dict[str, Any] = {"__name__": "emitted"}
    exec(source, scope)
    images = torch.randn(4, 3, 40, 40)

    def scores(network: nn.Module) -> torch.Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            made: torch.Tensor = network(images)
        return made

    emitted = scope["Network"]()
    emitted.load_state_dict(td.state_dict())
    assert torch.equal(scores(emitted.train()), scores(td))
    kept = scope["Network"](drop_path_rate=0.0)
    kept.load_state_dict(td.state_dict())
    assert torch.equal(scores(kept.train()), scores(td.eval()))
    assert not torch.equal(scores(emitted), scores(kept))
