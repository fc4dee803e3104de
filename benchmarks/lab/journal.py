"""The file of finished jobs: a line each, added whole or not at all, safe to share between processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from io import RawIOBase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from td_compiler.benchmarks.data.images import DataError

__all__ = ["Result", "Results", "waiting_lock"]


@dataclass(frozen=True)
class Result:
    """A finished job.

    Attributes:
        key: what tells it from other jobs: a hash of all that its figures depend on.
        experiment, name: which experiment it belongs to, and the job's name.
        job: the job's fields.
        conditions: what its figures depend on beside them: the content of its data and sources, the processor, the
            precision, the versions of the job and the compiler.
        figures: what was measured.
        command: the command that made it.
        versions: of Python, td-compiler and the libraries, and the device.
        seconds: how long it took.
        finished: when, in UTC, as in `2026-01-31T12:00:00`.
    """

    key: str
    experiment: str
    name: str
    job: dict[str, Any]
    conditions: dict[str, Any]
    figures: dict[str, Any]
    command: str
    versions: dict[str, str]
    seconds: float
    finished: str

    def line(self) -> str:
        """One line of JSON, with a checksum of the rest at its end."""
        content = asdict(self)
        return json.dumps({**content, "checksum": _checksum(content)}) + "\n"

    @staticmethod
    def of_line(line: str) -> Result:
        """The result in a line.

        Raises:
            ValueError: if the line is damaged.
            DataError: if it is a whole line of an older version.
        """
        content = json.loads(line)
        if isinstance(content, dict) and {"key", "job", "figures", "checksum"} <= content.keys() != _NAMES:
            raise DataError("written by another version of the experiments, whose results hold other columns")
        if not isinstance(content, dict) or content.keys() != _NAMES:
            raise ValueError("it is not a result")
        if content.pop("checksum") != _checksum(content):
            raise ValueError("its content does not fit its checksum")
        return Result(**content)


_NAMES = {field.name for field in fields(Result)} | {"checksum"}


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Results:
    """The finished jobs of a folder.

    Args:
        path: the file; its folder is made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locks = path.parent / "locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        self._named: set[int] = set()

    def read(self) -> dict[str, Result]:
        """All results by key, the later one where two have the same; damaged lines are named on standard error.

        Raises:
            DataError: if results of another version are among them.
        """
        found: dict[str, Result] = {}
        for number, line in enumerate(self._lines(), start=1):
            try:
                result = Result.of_line(line)
            except DataError as error:
                raise DataError(f"{self.path}, line {number}: {error}; give another folder or move it away.") from error
            except ValueError as error:
                self._name(number, error)
            else:
                found[result.key] = result
        return found

    def add(self, result: Result) -> None:
        """Add a line; after a crash or on a full disk the file is as it was before.

        Raises:
            OSError: if the file cannot be written.
        """
        with FileLock(self._locks / "results.lock"), self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                _append(file, (b"" if self._ends_a_line() else b"\n") + result.line().encode())
            except OSError:
                os.truncate(self.path, end)
                raise

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process has the job of a key to itself, until the end of the context or of the process."""
        lock = FileLock(self._locks / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def wait_for(self, key: str, name: str) -> contextlib.AbstractContextManager[object]:
        """The same, but wait for the process that has the job, and say so: `name` is the job's."""
        return waiting_lock(self._locks / f"{key}.lock", name)

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return True
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        with FileLock(self._locks / "results.lock"):  # else a line that is being added could look damaged
            text = self.path.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.split("\n") if line.strip()]

    def _name(self, number: int, error: ValueError) -> None:
        if number not in self._named:
            self._named.add(number)
            print(f"{self.path}, line {number} is damaged ({error}); it is passed over.", file=sys.stderr)


def _append(file: RawIOBase, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]
    os.fsync(file.fileno())


@contextlib.contextmanager
def waiting_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock between processes; where another process holds it, say on standard error what is waited for."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that works on {what} ({path})", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
