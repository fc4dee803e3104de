"""The file of finished jobs: a line each, written whole or not at all, safe to share between processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from td_compiler.files import write_together

__all__ = ["Result", "Results"]


@dataclass(frozen=True)
class Result:
    """A finished job.

    Attributes:
        key: what tells it from other jobs: a hash of all that its figures depend on.
        experiment, name: which experiment it belongs to, and the job's name.
        job: the job's fields.
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
        """
        content = json.loads(line)
        if not isinstance(content, dict) or content.keys() != {field.name for field in fields(Result)} | {"checksum"}:
            raise ValueError("it is not a result")
        if content.pop("checksum") != _checksum(content):
            raise ValueError("its content does not fit its checksum")
        return Result(**content)


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
        """All results by key, the later one where two have the same; damaged lines are named on standard error."""
        found: dict[str, Result] = {}
        for number, line in enumerate(self._lines(), start=1):
            try:
                result = Result.of_line(line)
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
        with FileLock(self._locks / "results.lock"):
            lines = [*self._lines(), result.line()]
            write_together({self.path: lambda scratch: _write(scratch, "".join(lines))})

    @contextlib.contextmanager
    def claim(self, key: str, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process has the job of a key to itself, until the end of the context or of the process.

        Args:
            key: of the job.
            wait: until another process that has the job is done with it.
        """
        lock = FileLock(self._locks / f"{key}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        return [f"{line}\n" for line in text.splitlines() if line.strip()]

    def _name(self, number: int, error: ValueError) -> None:
        if number not in self._named:
            self._named.add(number)
            print(f"{self.path}, line {number} is damaged ({error}); it is passed over.", file=sys.stderr)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
