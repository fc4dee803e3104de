"""Jobs: what an experiment measures, piece by piece; running them here, in several processes or on a Ray cluster."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from td_compiler.benchmarks.lab.files import said
from td_compiler.benchmarks.lab.journal import Result, Results
from td_compiler.benchmarks.lab.machine import Machine

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Job", "JobsFailed", "Result", "Results", "conditions", "job_key", "run_jobs"]


class Job(Protocol):
    """One independent piece of an experiment: a frozen dataclass of plain fields, or of dataclasses of such.

    Attributes:
        experiment: the experiment's name.
        revision: raised by a person when the same fields would now give other figures.
        data: the data set that it reads, "" for none.
        name: one line for progress and logs.
    """

    experiment: ClassVar[str]
    revision: ClassVar[int]

    @property
    def data(self) -> str: ...

    @property
    def name(self) -> str: ...

    def run(self, machine: Machine) -> dict[str, Any]:
        """Measure; the figures as plain JSON."""


class JobsFailed(RuntimeError):
    """Some jobs ended in an error; the others are done."""


@dataclass(frozen=True)
class _Work:
    """What a process needs to take part in running jobs."""

    jobs: tuple[Job, ...]
    machine: Machine
    command: str


def conditions(job: Job, machine: Machine) -> dict[str, Any]:
    """What a job's figures depend on beside its fields.

    Raises:
        DataError: if the data set is unknown or missing.
        ConversionError: if there is no such network.
    """
    import td_compiler
    from td_compiler.benchmarks.data.datasets import fingerprint

    parts = list(_parts(job))
    sources = dict.fromkeys(part.content() for part in parts if hasattr(part, "content"))
    data = dict.fromkeys(part.data for part in parts if getattr(part, "data", ""))
    return {
        "revision": job.revision,
        "compiler": td_compiler.__version__,
        "sources": ", ".join(filter(None, sources)),
        "content": ", ".join(fingerprint(name, machine) for name in data),
        "processor": machine.processor,
        "precision": machine.precision,
    }


def job_key(job: Job, machine: Machine) -> str:
    """A hash of all that a job's figures depend on: the columns of its result. Raises as `conditions`."""
    depends = {"experiment": job.experiment, "fields": said(_fields(job)), "conditions": conditions(job, machine)}
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def _parts(thing: Any) -> Iterator[Any]:
    """A job and the dataclasses in it: those with `data` read a data set, those with `content` a file or a library."""
    if is_dataclass(thing):
        yield thing
        for field in fields(thing):
            yield from _parts(getattr(thing, field.name))


def run_jobs(
    jobs: Sequence[Job], machine: Machine, *, processes: int = 1, ray: str | None = None, command: str = ""
) -> list[Result]:
    """Run the jobs that have no result yet, each result written as soon as it is there.

    Several processes, also of several commands, share the work on one folder.

    Args:
        jobs: what to run.
        machine: where and how.
        processes: how many processes work at once on this computer.
        ray: the address of a Ray cluster to run on, `local` for one on this computer; None: without Ray.
        command: what results say that made them.

    Returns:
        The results of all the jobs, in their order; nothing in those of `torchrun`'s processes that keep no results.

    Raises:
        DataError: if a data set is unknown or missing; nothing was run then.
        ConversionError: if there is no such network; likewise.
        JobsFailed: if a job ended in an error; the others were run.
        OSError: if a result cannot be written, e.g. on a full disk.
    """
    keys = [job_key(job, machine) for job in jobs]
    results = Results(machine.results)
    work = _Work(tuple(jobs), machine, command)
    if ray is not None:
        _run_on_ray(work, keys, results, ray)
    elif processes > 1:
        _run_in_processes(work, processes)
    else:
        _work_through(work)
    if machine.rank:
        return []
    found = results.read()
    missing = [job.name for job, key in zip(jobs, keys, strict=True) if key not in found]
    if missing:
        raise JobsFailed(f"{len(missing)} of {len(jobs)} jobs failed: {'; '.join(missing)}")
    return [found[key] for key in keys]


def _work_through(work: _Work) -> None:
    """Run what has no result and is not being worked on; then what others were working on and left undone."""
    results = Results(work.machine.results)
    taken: list[tuple[int, Job]] = []
    for number, job in enumerate(work.jobs, start=1):
        key = job_key(job, work.machine)
        if work.machine.rank:  # one of the processes that train together: the first one keeps the results
            if key not in results.read():
                _run_one(job, key, work)
            continue
        with results.claim(key) as mine:
            if mine:
                _run_and_keep(job, key, number, work, results)
            else:
                taken.append((number, job))
    for number, job in taken:
        key = job_key(job, work.machine)
        with results.wait_for(key, job.name):
            _run_and_keep(job, key, number, work, results)


def _run_and_keep(job: Job, key: str, number: int, work: _Work, results: Results) -> None:
    if key not in results.read():
        result = _attempt(job, key, work)
        if result is not None:
            results.add(result)
            _say(f"[{number}/{len(work.jobs)}] {job.name}: {result.seconds:.1f} s")


def _attempt(job: Job, key: str, work: _Work) -> Result | None:
    """A job's result; None, and a line that says why, if it failed. What stops all jobs is raised."""
    from td_compiler.benchmarks.data.datasets import DataError

    try:
        return _run_one(job, key, work)
    except (DataError, OSError):
        raise
    except Exception as error:
        _say(f"{job.name} failed: {type(error).__name__}: {' '.join(str(error).split())}")
        return None


def _run_one(job: Job, key: str, work: _Work) -> Result:
    if work.machine.threads is not None:
        import torch

        torch.set_num_threads(work.machine.threads)
    start = time.perf_counter()
    figures = job.run(work.machine)
    return Result(
        key=key,
        experiment=job.experiment,
        name=job.name,
        job=_fields(job),
        conditions=conditions(job, work.machine),
        figures=json.loads(json.dumps(figures)),
        command=work.command,
        versions=_versions() | {"device": work.machine.describe()},
        seconds=round(time.perf_counter() - start, 2),
        finished=datetime.now(UTC).isoformat(timespec="seconds").removesuffix("+00:00"),
    )


def _run_in_processes(work: _Work, processes: int) -> None:
    """Let processes work through the same list: claims divide it among them."""
    import torch

    context = multiprocessing.get_context("spawn")  # a forked torch may deadlock in its thread pools
    threads = max(1, torch.get_num_threads() // processes)
    started = [context.Process(target=_serve, args=(work, threads)) for _ in range(processes)]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join()
    finally:
        for process in started:
            process.kill()


def _serve(work: _Work, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    try:
        _work_through(work)
    except KeyboardInterrupt:  # the parent says so
        sys.exit(130)
    except (ValueError, OSError) as error:
        _say(str(error))
        sys.exit(1)


def _run_on_ray(work: _Work, keys: Sequence[str], results: Results, address: str) -> None:
    """Run a Ray task for each job without result; the results are written here, as they arrive."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("Ray is not installed: pip install 'td-compiler[ray]'.") from error
    where = {"include_dashboard": False} if address == "local" else {"address": address}
    ray.init(**where, log_to_driver=False)
    on_gpu = work.machine.torch_device.type == "cuda"
    attempt = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0)(_attempt)
    done = results.read()
    waiting = {attempt.remote(job, key, work): job for job, key in zip(work.jobs, keys, strict=True) if key not in done}
    total = len(waiting)
    try:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            job, result = waiting.pop(ready), ray.get(ready)
            if result is not None:
                results.add(result)
            outcome = "failed" if result is None else f"{result.seconds:.1f} s"
            _say(f"[{total - len(waiting)}/{total}] {job.name}: {outcome}")
    finally:
        ray.shutdown()


def _fields(job: Job) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(_as_dataclass(job))))
    return plain


def _as_dataclass(job: Any) -> DataclassInstance:
    instance: DataclassInstance = job
    return instance


@functools.cache
def _versions() -> dict[str, str]:
    import td_compiler

    libraries = {"torch", "torchvision", "timm", "lightning", "foolbox", "captum"}
    installed = {dist.name: dist.version for dist in metadata.distributions() if dist.name in libraries}
    return {
        "python": platform.python_version(),
        "td-compiler": td_compiler.__version__,
        **dict(sorted(installed.items())),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
