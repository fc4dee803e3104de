"""A handful of the snapshots; `make snapshots` compares them all."""

from __future__ import annotations

import pytest
import torch

from tests import snapshots
from tests.hashes import differing as differing_hashes
from tests.snapshots import FILTERS, Snapshot, differences

QUICK = (
    "zoo:lenet_fc",
    "zoo:resnet32",
    "torchvision:resnet18",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
    "timm:mobilenetv2_035",
    "timm:ghostnet_050",
    "timm:hrnet_w18_small",
    "timm:starnet_s050",
    "timm:vgg11",
)


@pytest.mark.parametrize("name", QUICK)
def test_top_down_networks_are_as_they_were(name: str) -> None:
    kept = snapshots.read()[name]
    found = {
        filters: differences(snapshots.take(name, filters, "scores" in kept[filters]), kept[filters])
        for filters in FILTERS
    }
    assert not any(found.values()), found


def test_every_network_has_its_snapshots() -> None:
    kept = snapshots.read()
    assert set(kept) == set(snapshots.names())
    assert all(set(by_filters) == set(FILTERS) for by_filters in kept.values())


def test_differences_are_seen() -> None:
    kept: Snapshot = {"parameters": ["a.weight 8x3", "a.bias 8"], "scores": [1.0, 2.0]}
    assert not differences(kept, kept)
    assert not differences({"parameters": kept["parameters"]}, kept)
    assert not differences({"refused": "one reason"}, {"refused": "another"})
    assert differences({"refused": "a reason"}, kept) == ["it is refused now: a reason"]
    assert differences(kept, {"refused": "a reason"}) == ["it converts now"]
    assert "1 parameters of another shape" in differences({**kept, "parameters": ["a.weight 4x3", "a.bias 8"]}, kept)[0]
    assert not differences({**kept, "parameters": ["a.bias 8", "a.weight 8x3"]}, kept)
    assert differences({**kept, "parameters": ["b.bias 8", "a.weight 8x3"]}, kept)[-1].endswith("but for names")
    for scores in ([1.0, 2.001], [1.0, torch.nan]):
        assert "off by" in differences({**kept, "scores": scores}, kept)[0]
    assert not differences({**kept, "scores": [1.0, 2.0001]}, kept)


def test_what_depends_on_hashes_is_named() -> None:
    same, other = {"text": "a", "notes": "b"}, {"text": "c", "notes": "b"}
    found = [{"one": same, "two": same, "three": same}] * 4
    assert differing_hashes([*found, {"one": same, "two": other, "three": {"refusal": "d"}}]) == {
        "two": ["text"],
        "three": ["notes", "refusal", "text"],
    }
