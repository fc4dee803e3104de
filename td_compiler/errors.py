"""The one error that users meet, and how every other becomes it."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Breakdown", "ConversionError", "no_other_error", "one_line"]


class ConversionError(ValueError):
    """A network, option or input that cannot be converted; the message says why and what to do.

    The message is one sentence (or two) for the person at the keyboard: it names the layer's path and the shapes
    involved where there are any, and the way out.
    """


class Breakdown(ConversionError):
    """A defect of the compiler, not of the network that it was given; `__cause__` is what was raised."""


@contextlib.contextmanager
def no_other_error(doing: str, *, but: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Whatever is raised in here becomes a `ConversionError` that says where, with the original as its cause.

    `SystemExit` too: a network that calls `sys.exit` is no reason to end the program without a word.

    Args:
        but: kinds of errors that pass too.
        doing: what is going on, for the message: `the network was read`, `the pass X ran`.

    Raises:
        ConversionError: one that was raised as it is, or one that is made of another error. `KeyboardInterrupt` and
            its like pass.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, (ConversionError, *but)):
            raise
        raise _unforeseen(error, doing) from error


def one_line(error: BaseException) -> str:
    """An error's class and its message in one line, without the stack of C++ functions that torch adds to some."""
    message = " ".join(str(error).partition("\nException raised from")[0].split())
    message = message if len(message) <= 300 else f"{message[:300]}..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _unforeseen(error: BaseException, doing: str) -> ConversionError:
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if not _is_background(frame)]
    users = [_place(frame, line) for frame, line in frames if not _is_ours(frame)]
    node = next((found for frame, _ in reversed(frames) if (found := _node_path(frame))), "")
    at = f" at {node!r}" if node else ""
    if frames and not _is_ours(frames[-1][0]):
        return ConversionError(
            f"the network's own code raised {one_line(error)} at {users[-1]}, while {doing}{at}: it must take a batch"
            " of images (N, C, H, W) and return class scores."
        )
    where = ", ".join([*(_place(frame, line) for frame, line in frames[-1:]), *users[-1:]])
    return Breakdown(
        f"td-compiler broke down while {doing}{at}{f' ({where})' if where else ''}: {one_line(error)}; this is a defect"
        " of td-compiler: please report it with the traceback that tdc --debug shows (here it is this error's cause)."
    )


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_ours(frame: FrameType) -> bool:
    return _package(frame) == "td_compiler"


def _is_background(frame: FrameType) -> bool:
    """A frame of torch, of Python's library, or of code that was made at run time."""
    package = _package(frame)
    known = package == "torch" or (package in sys.stdlib_module_names and package != "__main__")
    return known or frame.f_code.co_filename.startswith("<")


def _place(frame: FrameType, line: int) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{line}"


def _node_path(frame: FrameType) -> str:
    """The module path of the graph's node that a function of this package was looking at, if it was."""
    node: Any = frame.f_locals.get("node") if _is_ours(frame) else None
    if not isinstance(getattr(node, "meta", None), dict):
        return ""
    from td_compiler.graph.notes import facts, is_top_down, origin_of  # needs torch, as nodes do

    origin = origin_of(node)
    modules = () if is_top_down(origin) else facts(origin).modules
    if modules:
        return modules[-1][0]
    return str(node.target) if node.op == "call_module" else str(node)
