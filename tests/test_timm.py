"""timm makes top-down networks by name, as it makes its own."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import td_compiler.timm
from td_compiler import ConversionError, TopDownNet, reverse
from td_compiler.benchmarks.experiments.coverage.models import SMALLEST
from td_compiler.emission import emit_source
from td_compiler.sources.timm_families import FAMILIES, family

SMALL: dict[str, Any] = {"input_size": (3, 64, 64)}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def create(name: str, **arguments: Any) -> TopDownNet:
    td = timm.create_model(name, **arguments)
    assert isinstance(td, TopDownNet)
    return td


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_network_is_what_reverse_makes(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    td = create("td_test_resnet", num_classes=10, filters="uniform", **SMALL).eval()
    torch.manual_seed(0)
    expected = reverse(timm.create_model("test_resnet", num_classes=10), filters="uniform", **SMALL).eval()
    assert same(td, expected)
    assert td(images).shape == (2, 10) and torch.equal(td(images), expected(images))


def test_other_arguments_go_to_timm() -> None:
    td = create("td_test_resnet", num_classes=3, in_chans=1, drop_rate=0.3, merge="add")
    assert (td.num_classes, td.in_chans, td.report.input_size) == (3, 1, (1, 160, 160))  # the size from timm's metadata
    assert td(torch.randn(1, 1, 32, 33)).shape == (1, 3)
    assert td.report.options is not None and td.report.options.merge == "add" and not hasattr(td, "merge")
    with pytest.raises(TypeError, match="filtres"):
        create("td_test_resnet", filtres="uniform")
    with pytest.raises(ConversionError, match="filters='unifrom' is not one of"):
        create("td_test_resnet", filters="unifrom", **SMALL)


def test_segmentation_scores_pixels(images: torch.Tensor) -> None:
    td = create("td_test_resnet", task="segmentation", num_classes=5, **SMALL).eval()
    assert td(images).shape == (2, 5, 64, 64) and td.num_classes == 5
    td.reset_classifier(7)
    assert td(images).shape == (2, 7, 64, 64)


def test_pretrained_weights_are_the_sources(tmp_path: Path) -> None:
    """By timm's own path from a configuration to a file, adapted by it to other channels and classes."""
    source = timm.create_model("test_resnet")
    torch.save(source.state_dict(), tmp_path / "source.pt")
    overlay = {"file": str(tmp_path / "source.pt")}
    td = create("td_test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    kept = [name for name, value in td.state_dict().items() if torch.equal(value, source.state_dict().get(name, value))]
    new = {name.partition(".")[0] for name in td.state_dict().keys() - kept}
    assert "layer2.0.conv2.weight" in kept and not {"entry", "merge"} & new
    other = timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=4)
    td = create(
        "td_test_resnet",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        in_chans=1,
        num_classes=4,
        input_size=(1, 64, 64),
    )
    weight = "layer3.0.conv2.weight"
    assert torch.equal(td.state_dict()[weight], other.state_dict()[weight])


def test_a_tag_chooses_the_sources_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """`td_resnet18.a2_in1k` asks timm for the weights of `resnet18.a2_in1k`."""
    asked = {}

    def load(model: nn.Module, pretrained_cfg: dict[str, object], **_: object) -> None:
        asked.update(pretrained_cfg)

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)
    td = create("td_resnet18.a2_in1k", pretrained=True, **SMALL)
    assert (asked["architecture"], asked["tag"], asked["hf_hub_id"]) == ("resnet18", "a2_in1k", "timm/resnet18.a2_in1k")
    assert td.pretrained_cfg["architecture"] == "td_resnet18"


def test_checkpoints_are_the_top_down_networks_own(tmp_path: Path) -> None:
    first = create("td_test_resnet", **SMALL)
    torch.save(first.state_dict(), tmp_path / "td.pt")
    assert same(create("td_test_resnet", checkpoint_path=str(tmp_path / "td.pt"), **SMALL), first)


def test_timms_registry_knows_them() -> None:
    names = timm.list_models("td_*")
    assert {"td_resnet50", "td_convnext_tiny", "td_mobilenetv3_small_050", "td_skresnet18"} <= set(names)
    assert not {"td_vit_base_patch16_224", "td_resnet50_clip", "td_mobilenetv4_hybrid_medium"} & set(names)
    assert timm.is_model("td_resnet50") and timm.models.is_model_in_modules("td_resnet50", "timm")
    assert "td_resnet18.a1_in1k" in timm.list_models("td_resnet18*", include_tags=True)
    assert timm.list_models("td_*", pretrained=True) == []  # there are no weights for the top-down networks themselves
    assert timm.models.get_pretrained_cfg("td_resnet50").input_size == (3, 224, 224)
    function = timm.models.model_entrypoint("td_resnet50")
    assert function is vars(td_compiler.timm)["td_resnet50"] and pickle.loads(pickle.dumps(function)) is function


def test_families_are_those_of_the_coverage_sweep() -> None:
    assert set(FAMILIES) == set(SMALLEST["timm"])
    assert all(family(name) == known for known, name in SMALLEST["timm"].items())
    assert family("td_resnet18") == "td_compiler.timm"  # its own networks are not reversed again


def test_what_timms_scripts_ask_for(images: torch.Tensor) -> None:
    td = create("td_test_resnet", num_classes=10, **SMALL).eval()
    config = timm.data.resolve_data_config({}, model=td)
    assert config == timm.data.resolve_data_config({}, model=timm.create_model("test_resnet"))
    assert td.default_cfg is td.pretrained_cfg
    twins = copy.deepcopy(td), pickle.loads(pickle.dumps(td))
    assert all(type(twin) is type(td) and torch.equal(twin(images), td(images)) for twin in twins)


@pytest.mark.parametrize(("name", "kind"), [("td_test_resnet", nn.Linear), ("td_resnetv2_18", nn.Conv2d)])
def test_classifiers_are_replaced(name: str, kind: type[nn.Module], images: torch.Tensor) -> None:
    td = create(name, num_classes=10, **SMALL)
    td.double().eval()
    td.reset_classifier(0)
    features = td(images.double())
    td.reset_classifier(4)
    classifier = td.get_classifier()
    weight, bias = classifier.get_parameter("weight"), classifier.get_parameter("bias")
    assert type(classifier) is kind and td.num_classes == 4
    torch.testing.assert_close(td(images.double()), features @ weight.flatten(1).mT + bias)
    assert "class Net(nn.Module)" in emit_source(td, class_name="Net", origin=name)
    with pytest.raises(ConversionError, match=r"global_pool='max' is for timm\.create_model"):
        td.reset_classifier(4, global_pool="max")


def test_networks_without_counterpart_are_refused_when_made() -> None:
    with pytest.raises(ConversionError, match="one resolution"):
        create("td_convmixer_768_32")


def test_the_package_does_not_need_timm() -> None:
    code = "import sys, td_compiler; td_compiler.reverse, td_compiler.from_pretrained; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
