"""`python -m benchmarks accuracy`, end to end, and what tables show."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from td_compiler.benchmarks.experiments import accuracy
from td_compiler.benchmarks.experiments.accuracy import EXPERIMENT
from td_compiler.benchmarks.experiments.gap import gap_table
from td_compiler.benchmarks.lab.jobs import Result, Results
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.lab.table import settings
from td_compiler.benchmarks.show.tables import Table, mean_and_deviation, ratio
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.recipes import PROFILES
from td_compiler.benchmarks.training.training import Training, planned
from tests.support.benchmark_data import NETWORKS, write_mnist


def test_accuracy_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["lenet_fc", "--data-root", str(write_mnist(tmp_path, train=64, test=40)), "--out", str(tmp_path / "out")]
    options += ["--profile", "smoke", "--runs", "2", "--head-width", "20", "--no-progress", "--device", "cpu"]
    assert accuracy.main(options, "python -m benchmarks accuracy") == 0
    shown = capsys.readouterr().out
    for parameters in ("7,670", r"14,452 \(1.88x\)", r"23,486 \(3.06x\)", r"57,846 \(7.54x\)"):
        assert re.search(parameters, shown), "SPEC 4's counts, and by how much more than BU's"
    assert (tmp_path / "out" / "figures" / "accuracy.png").stat().st_size > 5_000
    results = list(Results(tmp_path / "out" / "results.jsonl").read().values())
    assert len(results) == 10 and len(list((tmp_path / "out" / "checkpoints").iterdir())) == 10
    assert {result.job["training"]["run"] for result in results} == {0, 1}
    assert all(0 <= result.figures["accuracy"] <= 1 and result.figures["peak_memory"] > 1e5 for result in results)
    assert str(tmp_path) not in json.dumps([result.command for result in results])
    table, gap = EXPERIMENT.section(results).tables
    assert [row[0] for row in gap.rows] == ["mirror", "mirror, head_width=20"]
    values = [
        100 * result.figures["accuracy"]
        for result in results
        if result.job["training"]["network"]["arrangement"] == "bu"
    ]
    assert table.rows[0][:2] == ("BU", mean_and_deviation(values))
    assert [row[0] for row in table.rows] == ["BU", "mirror", "mirror, head_width=20", "uniform", "reversed"]


def test_numbers_in_tables() -> None:
    """Mean and sample deviation by hand: 1, 2, 6 have mean 3 and variance (4 + 1 + 9) / 2 = 7."""
    assert mean_and_deviation([1, 2, 6]) == "3.00 ± 2.65"
    assert (mean_and_deviation([0.5], scale=100), mean_and_deviation([])) == ("50.00", "-")
    assert (ratio([2, 4], [1]), ratio([1], [])) == ("3.00", "-")
    table = Table("A | B", ("x", "y"), (("a|b", 1234.5678), ("<c>", None)), note="n")
    assert table.markdown() == "**A | B**\n\n| x | y |\n| --- | --- |\n| a\\|b | 1235 |\n| &lt;c&gt; | - |\n\nn"
    first = "<tr><td data-column='x'>a|b</td><td class='number' data-column='y'>1235</td></tr>"
    assert f"{first}<tr><td data-column='x'>&lt;c&gt;</td>" in table.html()


def test_what_closes_the_gap_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Teacher and kept weights as networks of their own, paired with the plain one, from one command."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    options = [f"{tmp_path / 'nets.py'}:Net", "--arrangement", "bu", "--arrangement", "mirror", "--no-progress"]
    options += ["--data-root", str(write_mnist(tmp_path, train=64, test=40)), "--out", str(tmp_path / "out")]
    options += ["--profile", "smoke", "--runs", "2", "--teacher", "bu", "--weights", "bu", "--device", "cpu"]
    assert accuracy.main(options, "python -m benchmarks accuracy") == 0
    results = list(Results(tmp_path / "out" / "results.jsonl").read().values())
    assert len(results) == 8 and len(list((tmp_path / "out" / "checkpoints").iterdir())) == 8
    _, table = EXPERIMENT.section(results).tables
    assert [row[0] for row in table.rows] == ["mirror", "mirror, teacher=bu", "mirror, weights=bu"]
    assert all(row[-1] == "not tested: 2 of at least 3 paired runs" for row in table.rows[1:])


def test_the_table_of_the_gap_judges_paired_differences() -> None:
    """A helper that is right on 50 more of 1,000 images in each run, one on as many others, one on 50 fewer."""
    spec, paper = NetworkSpec("resnet32", "mirror"), PROFILES["paper"]
    arms = [
        (planned(paper, NetworkSpec("resnet32"), "cifar10", 0), 860),
        (planned(paper, spec, "cifar10", 0), 800),
        (planned(paper, spec, "cifar10", 0, teacher="bu"), 850),
        (planned(paper, spec, "cifar10", 0, start="bu"), 750),
        (planned(paper, replace(spec, options=(("head_width", 32),)), "cifar10", 0), -800),
    ]
    results = [judged(replace(plan, run=run), right) for plan, right in arms for run in range(3)]
    (setting,) = settings(results)
    table = gap_table(setting)
    assert table is not None and "half the loss" in table.note
    rows = {str(row[0]): row for row in table.rows}
    assert [row[-1] for row in rows.values()] == [None, "undecided", "helps", "does not help"]
    assert str(rows["mirror, teacher=bu"][3]).startswith("+5.00 [+") and "points" not in str(rows)
    assert str(rows["mirror"][2]).startswith("-6.00 [-") and rows["mirror, teacher=bu"][4] == 3
    assert gap_table(settings(results[:6])[0]) is None


def judged(training: Training, right: int) -> Result:
    """A run that is right on the first so many of 1,000 images; on the last ones, for a number below zero."""
    hits = [place < right if right > 0 else place >= 1_000 + right for place in range(1_000)]
    figures: dict[str, Any] = {"accuracy": sum(hits) / 1_000, "train_images": 1, "test_images": 1_000}
    job = json.loads(json.dumps({"training": asdict(training)}))
    conditions = {"revision": 1, "compiler": "1", "sources": "", "content": "", "processor": "c", "precision": "p"}
    figures |= {"right": packed(hits)}
    return Result(f"{training.name}", "accuracy", "a", job, conditions, figures, "c", {}, 1, "2026")
