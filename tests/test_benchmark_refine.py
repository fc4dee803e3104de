"""The refine experiment: canvases against what was put on them, the count of MACs, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from td_compiler import reverse, zoo
from td_compiler.benchmarks.data.canvases import make_canvases
from td_compiler.benchmarks.data.datasets import DataError, Images, load, title
from td_compiler.benchmarks.experiments import refine
from td_compiler.benchmarks.experiments.refine.jobs import count_macs
from td_compiler.benchmarks.lab.journal import Results
from td_compiler.network.refine import Refined
from tests.support.benchmark_data import machine, write_mnist


def test_every_canvas_holds_its_image() -> None:
    """At some place nothing is darker than the image, and most of it is not covered by anything brighter."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(41, 256, (40, 2, 9, 8), generator=generator, dtype=torch.uint8)
    base = Images(images, torch.arange(40) % 3, ("a", "b", "c"))
    canvases = make_canvases(base, 64, train=True)
    assert canvases.images.shape == (40, 2, 64, 64) and torch.equal(canvases.labels, base.labels)
    places = canvases.images.unfold(2, 9, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5)  # (N, 56, 57, C, 9, 8)
    same = (places == images[:, None, None]).float().mean((3, 4, 5))
    lighter = (places >= images[:, None, None]).flatten(3).all(3)
    found = (same * lighter).flatten(1).max(1)
    assert (found.values > 0.5).all()
    assert len(found.indices.unique()) > 30  # not all at one place
    assert torch.equal(make_canvases(base, 64, train=True).images, canvases.images)
    assert not torch.equal(make_canvases(base, 64, train=False).images, canvases.images)


def test_macs_are_those_of_the_report() -> None:
    """But for the pyramid's products: of matrices (16, 32) and (8, 32) with the image, from both sides."""
    with torch.device("meta"):
        td = reverse(zoo.lenet_fc(), input_size=(1, 32, 32))
    of_layers = sum(row.top_down.macs for row in td.report.stages)
    pyramid = sum(side * 32 * 32 + side * 32 * side for side in (16, 8))
    assert count_macs(td, (1, 32, 32)) == pytest.approx(of_layers + pyramid, rel=0.05)
    assert count_macs(Refined(td, 0.5), (1, 32, 32)) < 0.3 * count_macs(td, (1, 32, 32))


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_mnist(tmp_path, 64, 24), tmp_path / "out"
    words = ["--data", "canvas:40:mnist", "--data-root", str(root), "--out", str(out), "--device", "cpu"]
    words += ["--epochs", "1", "--runs", "1", "--no-progress", "--cost", "zoo:lenet_fc", "--side", "32"]
    assert refine.main([*words, "--patch", "0.5"], "refine") == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "Cost of windows" in shown and "MNIST on canvases of 40x40" in shown
    cost, *trained = Results(out / "results.jsonl").read().values()
    assert [result.job["patch"] for result in trained] == [1.0, 0.5]
    for figures in (cost.figures, trained[0].figures):
        assert figures["macs"]["0.5"] < 0.3 * figures["macs"]["1.0"]
    assert cost.figures["bytes"]["0.5"] < 0.4 * cost.figures["bytes"]["1.0"]
    assert all(seconds > 0 for kind in ("inference", "step") for seconds in cost.figures[kind].values())
    assert refine.main([*words, "--part", "time"], "refine") == 2
    assert "'time' is not one of cost, accuracy" in capsys.readouterr().err


def test_bad_canvases_are_one_sentence(tmp_path: Path) -> None:
    here = machine(tmp_path / "out", write_mnist(tmp_path, 8, 8))
    assert title("canvas:40:mnist") == "MNIST on canvases of 40x40"
    with pytest.raises(DataError, match="do not fit on it"):
        load("canvas:20:mnist", here, train=True)
    with pytest.raises(DataError, match="a canvas' side in pixels"):
        load("canvas:big:mnist", here, train=True)
