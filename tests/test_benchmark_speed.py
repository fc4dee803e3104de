"""`python -m benchmarks speed`: what it counts, and what its page says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from td_compiler.benchmarks.__main__ import main
from td_compiler.benchmarks.experiments.speed.handwritten import handwritten
from td_compiler.benchmarks.experiments.speed.jobs import SpeedJob, speed_jobs
from td_compiler.benchmarks.lab.machine import Machine


def job(network: str, **changes: object) -> SpeedJob:
    fields = {"batch": 2, "side": 28, "bf16": False, "compiled": False, "plain_layout": "contiguous"}
    return SpeedJob(network, **{**fields, **changes}, repeats=2, threads=1, device="CPU")


def counted(network: torch.nn.Module, levels: list[torch.Tensor]) -> int:
    """Products of convolutions alone, by torch's own count."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(levels)
    kinds = counter.get_flop_counts()["Global"]
    return sum(count for kind, count in kinds.items() if "convolution" in str(kind)) // 2


def test_products() -> None:
    measured = job("zoo:nin_light")
    levels, _ = measured.given(torch.device("cpu"))
    assert 2 * measured.macs("plain") == counted(handwritten("nin_light", "mirror"), levels)
    assert 2 * measured.macs("emitted") == counted(measured.network_of("emitted", torch.device("cpu")), levels)


def test_both_forms_have_the_same_parameters_and_precision() -> None:
    cpu = torch.device("cpu")
    measured = job("zoo:resnet32", side=32, bf16=True)
    levels, _ = measured.given(cpu)
    networks = [measured.network_of(form, cpu) for form in ("plain", "emitted")]
    assert len({sum(p.numel() for p in network.parameters()) for network in networks}) == 1
    assert {network.eval()(levels).dtype for network in networks} == {torch.float32}


def test_ways() -> None:
    machine = Machine(Path(), Path(), device="cpu")
    jobs = speed_jobs(["lenet_fc", "torchvision:vgg11"], machine, "smoke", None, None, 3, compiled=False, bf16=True)
    assert [(j.network, j.batch, j.side) for j in jobs[::4]] == [
        ("zoo:lenet_fc", 128, 28),
        ("torchvision:vgg11", 8, 64),
    ]
    layouts = ["contiguous", "channels_last"]
    assert [(j.bf16, j.plain_layout) for j in jobs[:4]] == [(bf16, way) for bf16 in (False, True) for way in layouts]


def test_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"speed lenet_fc --batch 2 --repeats 3 --threads 1 --device cpu --no-progress --out {tmp_path}"
    for _ in range(2):  # the second time all is there already
        with pytest.raises(SystemExit) as status:
            main(line.split())
        assert status.value.code == 0, capsys.readouterr().err
    page = (tmp_path / "speed.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| zoo:lenet_fc | 2 x 28 x 28")]
    assert [row.split(" | ")[2] for row in rows] == ["contiguous", "channels last"] * 2
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
