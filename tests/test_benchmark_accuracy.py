"""`python -m benchmarks accuracy`, end to end, and what tables show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from td_compiler.benchmarks.experiments import accuracy
from td_compiler.benchmarks.experiments.accuracy import EXPERIMENT
from td_compiler.benchmarks.lab.jobs import Results
from td_compiler.benchmarks.show.tables import Table, mean_and_deviation, ratio
from tests.support.benchmark_data import write_mnist


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
    (table,) = EXPERIMENT.section(results).tables
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
    assert "<td>a|b</td><td class='number'>1235</td></tr><tr><td>&lt;c&gt;</td>" in table.html()
