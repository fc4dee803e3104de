"""Runs tasks in processes of their own, so that one that hangs, crashes or eats all memory stops no other."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

__all__ = ["Lost", "run_tasks"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("spawn")  # a forked torch may deadlock in its thread pools
_TASKS_PER_PROCESS = 40  # what libraries cache per network goes with the process


@dataclass(frozen=True)
class Lost:
    """A task without result.

    Attributes:
        why: one line: it took too long, or its process died.
    """

    why: str


def run_tasks(
    tasks: Sequence[Task], work: Callable[[Task], Result], *, jobs: int, timeout: float
) -> Generator[tuple[Task, Result | Lost], None, None]:
    """Results in the order in which they are finished.

    Args:
        tasks: what to do; must pickle.
        work: a function at the top level of a module, called with one task in another process.
        jobs: how many processes work at once.
        timeout: seconds that a task may take; then its process is killed.

    Closing the iterator, or an exception such as KeyboardInterrupt, kills the processes.
    """
    pending = deque(tasks)
    workers: list[_Worker[Task, Result]] = []
    try:
        while pending or any(worker.busy for worker in workers):
            workers = [worker for worker in workers if not worker.retired]
            while len(workers) < min(jobs, len(pending) + sum(worker.busy for worker in workers)):
                workers.append(_Worker(work, timeout))
            for worker in workers:
                if pending and not worker.busy:
                    worker.start(pending.popleft())
            now = time.monotonic()
            patience = max(0.0, min((worker.deadline for worker in workers if worker.busy), default=now) - now)
            ready = wait([worker.connection for worker in workers if worker.busy], timeout=patience)
            for worker in workers:
                if worker.connection in ready or (worker.busy and time.monotonic() >= worker.deadline):
                    yield worker.finish(ready=worker.connection in ready)
    finally:
        for worker in workers:
            worker.kill()


class _Worker(Generic[Task, Result]):
    """One process, with at most one task at a time."""

    def __init__(self, work: Callable[[Task], Result], timeout: float) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(work, theirs), daemon=True)
        self.process.start()
        theirs.close()
        with contextlib.suppress(EOFError):
            self.connection.recv()  # the process has imported what the work needs: the clock starts afterwards
        self.timeout = timeout
        self.deadline = 0.0
        self.tasks: list[Task] = []
        self.busy = self.retired = False

    def start(self, task: Task) -> None:
        self.tasks.append(task)
        self.busy, self.deadline = True, time.monotonic() + self.timeout
        with contextlib.suppress(BrokenPipeError):  # a dead process is found in `finish`
            self.connection.send(task)

    def finish(self, *, ready: bool) -> tuple[Task, Result | Lost]:
        """The task and its result; the process is killed if it has none."""
        task, self.busy = self.tasks[-1], False
        if ready:
            try:
                result: Result = self.connection.recv()
            except (EOFError, ConnectionResetError):
                self.process.join()
                code = self.process.exitcode
                reason = f"its process died ({f'signal {-code}' if code and code < 0 else f'exit status {code}'})"
            else:
                if len(self.tasks) >= _TASKS_PER_PROCESS:
                    self.kill()
                return task, result
        else:
            reason = f"it took more than {self.timeout:g} s"
        self.kill()
        return task, Lost(reason)

    def kill(self) -> None:
        self.retired = True
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(work: Callable[[Task], Result], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection.send(None)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(work(connection.recv()))
