"""`python -m benchmarks`: the choice of an experiment, and `coverage`."""

import json
from pathlib import Path

import pytest

from benchmarks import coverage
from benchmarks.__main__ import main


def run_coverage(output: Path, *options: str) -> list[dict[str, object]]:
    """Run the experiment; the rows that it leaves."""
    assert coverage.main([*options, "--filters", "mirror", "--output", str(output)], prog="coverage") == 0
    return [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]


def test_an_unknown_experiment_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["covrage"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "No experiment 'covrage'; there are: coverage.\n"


def test_coverage_reports_published_sizes_and_what_does_not_convert(tmp_path: Path) -> None:
    output = tmp_path / "new" / "coverage.md"
    converted, unknown = run_coverage(output, "--models", "zoo:lenet_fc", "zoo:lenet")
    assert (converted["result"], converted["parameters_bu"], converted["parameters_td"]) == ("converted", 7670, 14452)
    assert unknown["result"] == "not made"
    table = output.read_text()
    assert "1 of 2 conversions succeeded" in table
    assert "| zoo:lenet_fc | mirror | converted | 1, 2, 4 | 7,670 | 14,452 |" in table


def test_coverage_resumes_after_the_rows_that_are_there(tmp_path: Path) -> None:
    output, journal = tmp_path / "coverage.md", tmp_path / "coverage.jsonl"
    (row,) = run_coverage(output, "--models", "zoo:lenet_fc")
    journal.write_text(json.dumps({**row, "seconds": 123.0}) + '\n{"model": "zoo:n')  # a run killed while it wrote
    rows = run_coverage(output, "--models", "zoo:lenet_fc", "zoo:lenet", "--resume")
    assert [(row["model"], row["seconds"]) for row in rows] == [("zoo:lenet_fc", 123.0), ("zoo:lenet", 0.0)]
