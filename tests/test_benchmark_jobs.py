"""Running jobs: killed, shared between processes, on Ray, with damaged results, on a full disk, interrupted."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from td_compiler.benchmarks import __main__
from td_compiler.benchmarks.data.images import DataError
from td_compiler.benchmarks.experiments import accuracy
from td_compiler.benchmarks.experiments.accuracy import Accuracy
from td_compiler.benchmarks.lab import journal
from td_compiler.benchmarks.lab.jobs import Job, JobsFailed, Results, job_key, run_jobs
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.training import Training
from tests.support.benchmark_data import NETWORKS, RECIPE, machine, write_mnist

PATIENCE = 500  # seconds; what takes a moment may take minutes where much else runs


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def processes(marks: Path) -> set[str]:
    return {path.name.split("-")[1] for path in marks.iterdir()}


@dataclass(frozen=True)
class Count:
    """A job that leaves a mark in a folder each time it runs, and waits until so many processes have left one."""

    experiment: ClassVar[str] = "count"
    revision: ClassVar[int] = 1

    number: int
    marks: str
    seconds: float = 0.0
    fails: bool = False
    data: str = "mnist"
    company: int = 1

    @property
    def name(self) -> str:
        return f"count {self.number}"

    def run(self, machine: Machine) -> dict[str, Any]:
        time.sleep(self.seconds)
        Path(self.marks, f"{self.number}-{os.getpid()}-{time.monotonic_ns()}").touch()
        wait_until(lambda: len(processes(Path(self.marks))) >= self.company)
        if self.fails:
            raise RuntimeError("no luck")
        return {"square": self.number**2}


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    (tmp_path / "nets.py").write_text(NETWORKS)
    (tmp_path / "marks").mkdir()
    return machine(tmp_path / "out", write_mnist(tmp_path))


def counts(here: Machine, count: int = 4, **more: Any) -> list[Count]:
    return [Count(number, str(here.data_root / "marks"), **more) for number in range(count)]


def marks(here: Machine) -> list[int]:
    return sorted(int(path.name.partition("-")[0]) for path in (here.data_root / "marks").iterdir())


def test_a_result_is_kept_and_its_job_is_not_run_again(here: Machine) -> None:
    first = run_jobs(counts(here, 2), here, command="python -m benchmarks count")
    again = run_jobs(counts(here, 4), here)
    assert marks(here) == [0, 1, 2, 3]
    assert [result.figures for result in again] == [{"square": n**2} for n in range(4)]
    assert again[:2] == first and first[0].command == "python -m benchmarks count"
    assert first[0].job == {
        "number": 0,
        "marks": str(here.data_root / "marks"),
        "seconds": 0.0,
        "fails": False,
        "data": "mnist",
        "company": 1,
    }
    assert {"python", "torch", "td-compiler", "device"} <= set(first[0].versions)


def test_the_key_holds_what_figures_depend_on(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = counts(here, 1)
    key = job_key(job, here)
    assert job_key(job, replace(here, progress=True, workers=3)) == key
    assert job_key(replace(job, number=5), here) != key
    assert job_key(job, replace(here, precision="bf16-mixed")) != key
    monkeypatch.setattr(Machine, "processor", "another one")
    assert job_key(job, here) != key
    monkeypatch.undo()
    monkeypatch.setattr(Count, "revision", 2)
    assert job_key(job, here) != key


def test_an_edited_file_is_another_network_and_another_precision_another_result(here: Machine) -> None:
    """Also where what was edited is a file that it imports, and where only the data changed, not their size."""
    folder = here.data_root
    (folder / "width.py").write_text("WIDTH = 4")
    (folder / "own.py").write_text(
        NETWORKS.replace("from torch import nn", "from torch import nn\nfrom width import WIDTH")
    )
    job = Accuracy(Training(NetworkSpec(f"{folder / 'own.py'}:Net"), "mnist", replace(RECIPE, epochs=1)))
    keys = {job_key(job, here)}
    run_jobs([job], here)
    (folder / "width.py").write_text("WIDTH = 8")
    keys.add(job_key(job, here))
    (folder / "own.py").write_text(
        NETWORKS.replace("nn.Conv2d(4, 8, 3", "nn.Conv2d(4, 9, 3").replace("Linear(8", "Linear(9")
    )
    keys.add(job_key(job, here))
    (wider,) = run_jobs([job], here)
    assert wider.figures["parameters"] == 40 + 4 * 9 * 9 + 9 + 10 * 9 + 10
    (half,) = run_jobs([job], replace(here, precision="bf16-mixed"))
    assert half.conditions["precision"] == "bf16-mixed" and half.key not in keys
    assert len({*keys, half.key}) == 4 and len(list(here.checkpoints.iterdir())) == 3


def test_results_of_an_older_version_are_refused_by_name(here: Machine) -> None:
    run_jobs(counts(here, 1), here)
    line = json.loads(here.results.read_text())
    del line["conditions"]
    here.results.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=r"results\.jsonl, line 1: written by another version"):
        run_jobs(counts(here, 2), here)


def test_who_waits_says_what_for(here: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = counts(here, 1)
    with Results(here.results).claim(job_key(jobs[0], here)):
        other = threading.Thread(target=run_jobs, args=(jobs, here))
        other.start()
        while "waiting for another process that works on count 0" not in (said := capfd.readouterr().err):
            assert other.is_alive(), said
            time.sleep(0.05)
        assert marks(here) == []
    other.join(30)
    assert marks(here) == [0]


def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch, here: Machine) -> None:
    shown = []
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        shown += [replace(here, progress=wanted).shows_progress for wanted in (False, True)]
    assert shown == [False, False, False, True]


def test_threads_are_those_of_the_command(here: Machine) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        (result,) = run_jobs(counts(here, 1), replace(here, threads=before + 1))
    finally:
        torch.set_num_threads(before)
    assert result.versions["device"].endswith(f"{before + 1} threads")


def test_a_failed_job_stops_no_other_and_is_named(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    jobs: list[Job] = [*counts(here, 1, fails=True), *counts(here, 2)]
    with pytest.raises(JobsFailed, match="1 of 3 jobs failed: count 0"):
        run_jobs(jobs, here)
    assert "count 0 failed: RuntimeError: no luck" in capsys.readouterr().err
    assert len(Results(here.results).read()) == 2


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda line: line[: len(line) // 2], "damaged"),
        (lambda line: line.replace('"square": 1', '"square": 7'), "does not fit its checksum"),
        (lambda line: "[1, 2]", "not a result"),
        (lambda line: "\x00\x00", "damaged"),
    ],
)
def test_a_damaged_line_is_named_and_its_job_run_again(
    here: Machine, damage: Callable[[str], str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_jobs(counts(here, 3), here)
    lines = here.results.read_text().splitlines()
    here.results.write_text("\n".join([lines[0], damage(lines[1]), lines[2]]) + "\n")
    results = run_jobs(counts(here, 3), here)
    message = capsys.readouterr().err
    assert "line 2 is damaged" in message and why in message
    assert marks(here) == [0, 1, 1, 2] and [result.figures["square"] for result in results] == [0, 1, 4]


def test_a_full_disk_leaves_the_file_whole(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_jobs(counts(here, 1), here)
    before = here.results.read_text()

    def full(file: Any, content: bytes) -> None:
        file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(here.results))

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_append", full)
        with pytest.raises(OSError, match="No space left"):
            run_jobs(counts(here, 3), here)
    assert here.results.read_text() == before
    assert {path.name for path in here.out.iterdir()} == {"results.jsonl", "locks"}, "nothing half-written is left"
    assert len(run_jobs(counts(here, 3), here)) == 3


_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(
    [
        "td_compiler.benchmarks.training.fitting",
        "td_compiler.benchmarks.experiments.accuracy",
        "tests.support.benchmark_data",
    ]
)


def test_processes_share_the_work(here: Machine) -> None:
    """Two processes on one folder: every job runs once, no line is lost."""
    jobs = counts(here, 12, company=2)
    others = [_SPAWN.Process(target=run_jobs, args=(jobs, here)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(PATIENCE)
    assert [other.exitcode for other in others] == [0, 0]
    assert marks(here) == list(range(12))
    assert len(here.results.read_text().splitlines()) == 12
    assert len(processes(here.data_root / "marks")) == 2


def test_a_job_whose_process_died_is_taken_over(here: Machine) -> None:
    """The claim of a killed process is void, and who waits for it runs the job."""
    jobs = counts(here, 1, seconds=1.5)
    dying = _SPAWN.Process(target=run_jobs, args=(jobs, here))
    dying.start()
    key = job_key(jobs[0], here)
    lock = here.out / "locks" / f"{key}.lock"
    wait_until(lock.exists)
    time.sleep(0.1)
    threading.Timer(0.3, dying.kill).start()
    assert len(run_jobs(jobs, here)) == 1
    assert marks(here) == [0]


def sweep(here: Machine) -> list[Accuracy]:
    recipe = replace(RECIPE, epochs=6, augment="shift-flip")
    file = f"{here.data_root / 'nets.py'}:Normed"
    networks = [NetworkSpec(file), NetworkSpec(file, "mirror")]
    return [Accuracy(Training(network, "mnist", recipe, run)) for network in networks for run in (0, 1)]


def run_sweep(here: Machine, most: float = 0) -> None:
    """Run it; the system ends the process when a processor has worked for `most` seconds, if that is not 0."""
    import torch

    torch.set_num_threads(1)
    signal.setitimer(signal.ITIMER_PROF, most)
    run_jobs(sweep(here), here)
    (here.data_root / "processor").write_text(str(time.process_time()))


def figures(here: Machine) -> dict[str, Any]:
    """All that results hold but times."""
    timeless = {}
    for key, result in Results(here.results).read().items():
        history = [{**epoch, "seconds": 0} for epoch in result.figures["history"]]
        timeless[key] = {**result.figures, "seconds_per_epoch": 0, "history": history}
    return timeless


def test_a_sweep_killed_five_times_ends_with_the_results_of_one_that_was_not(here: Machine) -> None:
    whole, killed = (replace(here, out=here.out / name) for name in ("whole", "killed"))
    ready = _SPAWN.Process(target=len, args=("",))  # the server that processes are forked from has imported everything
    ready.start()
    ready.join()
    undisturbed = _SPAWN.Process(target=run_sweep, args=(whole,))
    undisturbed.start()
    undisturbed.join(PATIENCE)
    assert undisturbed.exitcode == 0
    seconds = float((here.data_root / "processor").read_text())

    chance, kills, lines = random.Random(), 0, [0]
    while kills < 5:
        victim = _SPAWN.Process(target=run_sweep, args=(killed, seconds * chance.uniform(0.04, 0.14)))
        victim.start()
        victim.join(PATIENCE)
        if victim.exitcode == 0:  # it was done before its time
            break
        assert victim.exitcode == -signal.SIGPROF
        kills += 1
        results = Results(killed.results).read() if killed.results.exists() else {}
        assert len(results) >= lines[-1], "nothing that was finished is lost"
        lines.append(len(results))
    last = _SPAWN.Process(target=run_sweep, args=(killed,))
    last.start()
    last.join(PATIENCE)
    assert last.exitcode == 0
    assert kills == 5, "the sweep was done too soon to be killed five times"
    assert len(figures(whole)) == 4 and figures(killed) == figures(whole)


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(here: Machine) -> None:
    options = [f"{here.data_root / 'nets.py'}:Normed", "--arrangement", "bu", "--data-root", str(here.data_root)]
    options += ["--out", str(here.out), "--epochs", "40", "--runs", "1", "--no-progress", "--device", "cpu"]
    errors = here.data_root / "errors"
    process = _SPAWN.Process(target=_command, args=(options, errors))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 130
    assert "interrupted; the same command goes on from here" in errors.read_text()
    assert list(here.out.glob("checkpoints/*/last.ckpt"))
    assert accuracy.main(options, "python -m benchmarks accuracy") == 0
    (result,) = Results(here.results).read().values()
    assert len(result.figures["history"]) == 40
    assert "--data-root DATA-ROOT" in result.command and str(here.out) not in result.command


def _command(options: list[str], errors: Path) -> None:
    """The command, interrupted as it writes its third checkpoint."""
    import torch

    from td_compiler.benchmarks.training import fitting

    save, saves = fitting._Module.on_save_checkpoint, itertools.count(1)

    def interrupted(self: fitting._Module, checkpoint: dict[str, Any]) -> None:
        save(self, checkpoint)
        if next(saves) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    fitting._Module.on_save_checkpoint = interrupted  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
    sys.stderr = errors.open("w")
    torch.set_num_threads(1)
    raise SystemExit(accuracy.main(options, "python -m benchmarks accuracy"))


def test_ray_gives_what_one_process_gives(here: Machine) -> None:
    pytest.importorskip("ray")
    alone = replace(here, out=here.out / "alone")
    expected = {result.key: result.figures for result in run_jobs(counts(here, 6), alone)}
    on_ray = run_jobs(counts(here, 6, seconds=0.0), here, ray="local")
    assert {result.key: result.figures for result in on_ray} == expected
    assert len(processes(here.data_root / "marks")) >= 2


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--profile", "tiny"], 2, "'tiny' is not one of smoke, quick, paper"),
        (["--epoch", "3"], 2, "No such option"),
        (["--runs", "0"], 2, "Invalid value for '--runs'"),
        (["--device", "gpu"], 2, "'gpu' cannot be used"),
        (["--data", "mnst"], 2, "There is no data set 'mnst'"),
        (["--data-root", "/nowhere"], 2, "There is no mnist in /nowhere/MNIST/raw: give its folder with --data-root"),
        (["--arrangement", "mirrored"], 2, "arrangement='mirrored' is not one of"),
        (["--recipe", "batchsize=3"], 2, "'batchsize=3' is neither fast nor NAME=VALUE"),
        (["--augment", "flip"], 2, "augment='flip' is not one of"),
        (["lenet_fc", "lenet"], 2, "zoo has no model 'lenet'"),
    ],
)
def test_wrong_usage_is_one_line(
    here: Machine, options: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data-root", str(here.data_root), "--out", str(here.out), "--profile", "smoke", "--no-progress"]
    assert accuracy.main([*common, *options], "python -m benchmarks accuracy") == status
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1] and len(lines) == 1
    assert not here.results.exists() and not here.checkpoints.exists(), "nothing has started"


def test_help_needs_no_torch() -> None:
    code = "import runpy, sys\ntry: runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)\nfinally: "
    code += "assert 'torch' not in sys.modules"
    words = [sys.executable, "-c", code, "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in __main__.EXPERIMENTS)
