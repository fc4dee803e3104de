"""What a long command is at, on standard error: one line that is written over, and gone in the end."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["progress"]

_PATIENCE = 1.0  # seconds that pass without a word


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function to be called with the name of every step as it begins.

    Nothing is written during the first second, and nothing at all where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    stream, start, latest, shown = sys.stderr, time.monotonic(), "", 0
    lock = threading.Lock()

    def show() -> None:
        nonlocal shown
        with lock:
            stream.write(f"\r{latest} ...".ljust(shown + 1))
            stream.flush()
            shown = max(shown, len(latest) + 4)

    def begin(step: str) -> None:
        nonlocal latest
        latest = step
        if time.monotonic() - start > _PATIENCE:
            show()

    timer = threading.Timer(_PATIENCE, show)
    timer.daemon = True
    timer.start()
    try:
        yield begin
    finally:
        timer.cancel()
        timer.join()
        if shown:
            stream.write("\r" + " " * shown + "\r")
            stream.flush()
