"""`tdc inspect` beyond its table: JSON for programs, receptive fields where there is room."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torchvision
from rich.console import Console
from typer.testing import CliRunner

from td_compiler import reverse, zoo
from td_compiler.cli import app as cli
from td_compiler.report.receptive_fields import with_receptive_fields
from td_compiler.report.savings import savings
from td_compiler.report.tables import print_report


def inspect_json(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli.app, ["inspect", *words, "--json"])
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


COST = {"size", "width", "units", "parameters", "macs", "activation_bytes", "receptive_field"}


def test_json_has_the_keys_that_programs_read_and_the_published_parameter_counts() -> None:
    data = inspect_json("zoo:resnet32", "--filters", "uniform")
    assert set(data) == {"source", "input_size", "scales", "stages", "total", "notes"}
    assert data["input_size"] == [3, 32, 32]
    assert data["scales"] == [[1, 1], [2, 2], [4, 4]]
    assert [stage["name"] for stage in data["stages"]] == ["stage1", "stage2", "stage4", "head"]
    for stage in data["stages"]:
        assert set(stage) == {"name", "scale", "bottom_up", "top_down"}
        assert set(stage["bottom_up"]) == set(stage["top_down"]) == COST
    totals = [data["total"][which]["parameters"] for which in ("bottom_up", "top_down")]
    assert totals == [467_946, 319_626]
    assert all(set(total) == {"parameters", "macs", "activation_bytes"} for total in data["total"].values())
    # By hand: a 3x3 convolution, then five blocks of two at each scale: 3 + 10 * 2 * 1 = 23 pixels after the first.
    assert data["stages"][0]["bottom_up"]["receptive_field"] == {"smallest": [23, 23], "largest": [23, 23]}
    assert data["stages"][-1]["top_down"]["receptive_field"] is None


def test_json_has_null_where_the_bottom_up_network_does_nothing() -> None:
    pytest.importorskip("torchvision")
    data = inspect_json("torchvision:resnet18")
    assert data["stages"][0]["bottom_up"] is None
    assert data["stages"][1]["bottom_up"]["receptive_field"]["largest"] == [7, 7]


def test_the_table_shows_receptive_fields_where_there_is_room(capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.lenet_fc()
    td = reverse(model)
    report = with_receptive_fields(td.report, model, td)
    printed = {}
    for width in (80, 90, 150):
        print_report(report, Console(width=width))
        printed[width] = capsys.readouterr().out
        assert max(map(len, printed[width].splitlines())) <= width
    assert "field" not in printed[80]
    # Of LeNetFC's finest scale: 5 in the bottom-up network; 11 = 5 (entry) + 2 (merge) + 4 in the top-down one.
    for width in (90, 150):
        finest = next(line for line in printed[width].splitlines() if line.split()[0] == "1")
        assert finest.split()[-2:] == ["5", "11-40"]
    assert "1,866" in printed[150]
    assert "1.9k" in printed[90]


def test_what_would_make_it_cheaper() -> None:
    """MobileNetV2's head has two thirds of the products and nine tenths of the memory (SPEC 2.12)."""
    model = torchvision.models.mobilenet_v2()
    report = reverse(model, input_size=(3, 224, 224)).report
    found = {(saving.option, saving.value): saving for saving in savings(model, report, {})}
    pooled = found["head", "pooled"]
    assert pooled is next(iter(found.values()))
    assert pooled.macs == pytest.approx(1 / 3, abs=0.02) and pooled.activation_bytes == pytest.approx(0.1, abs=0.03)
    cheap = reverse(model, head="pooled", merge="add").report
    assert not {("head", "pooled"), ("merge", "add")} & {
        (saving.option, saving.value) for saving in savings(model, cheap, {"head": "pooled", "merge": "add"})
    }
