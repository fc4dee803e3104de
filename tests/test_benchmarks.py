"""`python -m benchmarks`: the choice of an experiment, and `coverage`."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from td_compiler.benchmarks.__main__ import main
from td_compiler.benchmarks.experiments import coverage
from td_compiler.benchmarks.experiments.coverage.models import SMALLEST, expand, family
from td_compiler.benchmarks.experiments.coverage.rows import Row, Task, code_version, convert
from td_compiler.benchmarks.experiments.coverage.tables import markdown, reasons
from td_compiler.benchmarks.experiments.coverage.workers import Lost, run_tasks

ENCODERS = {"swin_transformer", "vision_transformer", "maxvit"}  # torchvision's classifiers that are no CNNs


def run_coverage(output: Path, *options: str) -> list[dict[str, object]]:
    """Run the experiment; the rows that it leaves."""
    assert coverage.main([*options, "--output", str(output)], prog="coverage") == 0
    return [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]


def test_an_unknown_experiment_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["covrage"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("No experiment 'covrage'; there are: accuracy, ")


def test_coverage_reports_published_sizes_and_what_does_not_convert(tmp_path: Path) -> None:
    output = tmp_path / "new" / "coverage.md"
    converted, unknown = run_coverage(output, "--models", "zoo:lenet_fc", "zoo:lenet", "--each")
    assert (converted["result"], converted["parameters_bu"], converted["parameters_td"]) == ("converted", 7670, 14452)
    assert unknown["result"] == "not made"
    table = output.read_text()
    assert "1 of 2 converted, 1 not made." in table
    assert "| zoo:lenet_fc | mirror | converted | 1, 2, 4 | 7,670 | 14,452 |" in table


def test_coverage_resumes_after_rows_of_the_same_code_and_retries_what_failed(tmp_path: Path) -> None:
    output, journal = tmp_path / "coverage.md", tmp_path / "coverage.jsonl"
    done = Row("zoo:lenet_fc", "mirror", "meta", "zoo", "converted", macs_bu=1, parameters_bu=1, seconds=123.0)
    broken = Row("zoo:lenet", "mirror", "meta", "zoo", "failed", why=("an old defect",))

    def rerun(option: str, code: str) -> list[tuple[object, object]]:
        kept = [json.dumps({**vars(row), "code": code}) + "\n" for row in (done, broken)]
        journal.write_text("".join(kept) + '{"model": "zoo:n')  # by a run that was killed as it wrote
        rows = run_coverage(output, "--models", "zoo:lenet_fc", "zoo:lenet", option)
        return [(row["seconds"] == 123.0, row["result"]) for row in rows]

    assert rerun("--resume", code_version()) == [(True, "converted"), (False, "failed")]
    assert rerun("--retry", "older") == [(True, "converted"), (False, "not made")]
    assert rerun("--resume", "older") == [(False, "converted"), (False, "not made")]
    assert "1 of 2 converted, 1 not made." in output.read_text()


def test_coverage_with_weights_checks_values_too() -> None:
    meta, real = (convert(Task("zoo:lenet_fc", "mirror", device)) for device in ("meta", "cpu"))
    assert (meta.result, real.result) == ("converted", "converted")
    assert real.checked == meta.checked + 6, "values kept, the round trip, the emitted bits, three of a new one"


def test_a_network_that_breaks_the_conversion_is_a_row_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "vit.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(3, 3)\n"
        "    def forward(self, x):\n        return self.fc(x.mean((2, 3)))\n"
    )
    row = convert(Task(f"{tmp_path}/vit.py:Net", "mirror", "meta"))
    assert (row.result, row.family) == ("refused", "file")
    assert "2D convolution" in row.why[0]


def test_torchvision_group_is_every_classifier_but_the_transformers() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    modules = {name: torchvision.models.get_model_builder(name).__module__.rpartition(".")[2] for name in names}
    assert set(expand(["torchvision-cnns"])) == {f"torchvision:{n}" for n in names if modules[n] not in ENCODERS}
    assert {family(name) for name in expand(["torchvision-families"])} == {
        f"torchvision.{module}" for module in modules.values() if module not in ENCODERS
    }


@pytest.mark.skipif(timm.__version__ != "1.0.31", reason="other releases have other models")
def test_timm_group_is_the_634_models_without_attention() -> None:
    chosen = expand(["timm-cnns"])
    assert len(chosen) == 634
    assert {family(name) for name in chosen} == {f"timm.{name}" for name in SMALLEST["timm"]}
    for name in ("resnet50_clip", "mobilenetv4_hybrid_medium", "resnet50_clip_gap", "mobilenetv4_conv_small"):
        with torch.device("meta"):
            model = timm.create_model(name)
        has_attention = any("Attention" in type(module).__name__ for module in model.modules())
        assert (f"timm:{name}" in chosen) is not has_attention


def test_pytorchcv_group_has_one_network_of_each_family_that_classifies() -> None:
    pytest.importorskip("pytorchcv")
    chosen = expand(["pytorchcv-families"])
    assert len(chosen) == 111
    assert [family(name) for name in chosen] == [f"pytorchcv.{module}" for module in SMALLEST["pytorchcv"]]


def test_names_patterns_groups_and_families_choose_networks() -> None:
    assert expand(["zoo:nin*", "zoo:nin", "a.py:Net"]) == ["zoo:nin", "zoo:nin_light", "a.py:Net"]
    chosen = expand(["torchvision-cnns"], ["*.mobilenet*"])
    assert chosen and all(fnmatchcase(name, "torchvision:mobilenet_v?*") for name in chosen)
    with pytest.raises(ValueError, match=r"no model 'resnot\*'"):
        expand(["timm:resnot*"])
    assert coverage.main(["--models", "timm:resnot*"], prog="coverage") == 2


def test_summary_puts_reasons_together_that_differ_in_names_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whys = ["layer1.0.conv at 'layer1.0' has 3 groups", "layer4.conv at 'layer4' has 14 groups", "no stage"]
    rows = [Row(f"zoo:{i}", "mirror", "meta", "zoo", "refused", why=(why,)) for i, why in enumerate(whys)]
    rows.append(Row("zoo:3", "uniform", "meta", "zoo", "failed", why=("no stage",)))
    assert [(reason.result, len(reason.models)) for reason in reasons(rows)] == [
        ("refused", 2),
        ("refused", 1),
        ("failed", 1),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    assert coverage.main(["--summary", str(path), "--json"], prog="coverage") == 0
    first, *_, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["count"], first["models"], last["models"]) == (2, ["zoo:0", "zoo:1"], ["zoo:3 (uniform)"])
    page = markdown(rows, "Coverage", "Made here.", each=False)
    assert "0 of 4 converted, 3 refused, 1 failed." in page


def test_a_task_that_hangs_or_dies_takes_no_other_with_it() -> None:
    tasks = ["'a'", "__import__('time').sleep(60)", "'b'", "__import__('os')._exit(3)", "'c'"]
    assert dict(run_tasks(tasks, eval, jobs=2, timeout=2)) == {
        "'a'": "a",
        "'b'": "b",
        "'c'": "c",
        tasks[1]: Lost("it took more than 2 s"),
        tasks[3]: Lost("its process died (exit status 3)"),
    }
