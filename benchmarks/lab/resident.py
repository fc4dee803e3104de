"""By how much a process grows, and processes in which nothing else does."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = ["growth_at_peak", "in_own_process"]

P = ParamSpec("P")
R = TypeVar("R")

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth_at_peak(call: Callable[[], object]) -> int | None:
    """Bytes of resident memory that this process has at most during a call, above those that it had before.

    What the process held already, in use or not, does not count when the call takes it: ask in a process of its own.
    None where the system does not say; only Linux does.
    """
    if not _STATUS.exists():
        return None
    before = _resident("VmRSS")
    with contextlib.suppress(OSError):  # the peak starts anew here, where that is allowed
        _RESET.write_text("5", encoding="ascii")
    outcome = call()  # alive until the peak is read
    peak = _resident("VmHWM")
    del outcome
    return max(0, peak - before)


def _resident(name: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    return 1024 * int(lines[name].split()[0])


def in_own_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a function returns in a new process; it, its arguments and what it returns must pickle."""
    with ProcessPoolExecutor(1, mp_context=_context(function.__module__)) as executor:
        return executor.submit(function, *args, **kwargs).result()


def _context(module: str) -> BaseContext:
    """Processes that come from one that has imported a module and done nothing else: a forked torch may deadlock."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", module])
    return context
