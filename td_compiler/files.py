"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

__all__ = ["write_together", "write_whole"]


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write several files so that afterwards either all of them are there or none is; existing ones are replaced.

    A file that replaces another has its permissions; where a path is a link, what it points to is replaced.

    Every file is first written under a temporary name in its own folder and then renamed. If one cannot be renamed,
    those already in place are put back as they were.

    Args:
        writers: for every file a function that writes its content to the path that it is given.

    Raises:
        OSError: if a file cannot be written; nothing has changed then.
    """
    targets = {Path(os.path.realpath(path)): writer for path, writer in writers.items()}  # a link stays a link
    with ExitStack() as leftovers, ExitStack() as undo:
        temporaries = {target: _beside(target) for target in targets}
        for target, temporary in temporaries.items():
            leftovers.callback(temporary.unlink, missing_ok=True)
            targets[target](temporary)
            if target.exists():
                shutil.copymode(target, temporary)
        for target, temporary in temporaries.items():
            undo.callback(_restore, target, _backup(target, leftovers))
            os.replace(temporary, target)
        undo.pop_all()


def write_whole(path: Path, text: str) -> None:
    """Write one text file: a reader finds the old or the new text, never half of one.

    Raises:
        OSError: if it cannot be written; nothing has changed then.
    """
    write_together({path: lambda scratch: scratch.write_text(text, encoding="utf-8")})


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _backup(target: Path, leftovers: ExitStack) -> Path | None:
    """A second name for an existing file; None where there is no file."""
    if not target.exists():
        return None
    backup = _beside(target)
    leftovers.callback(backup.unlink, missing_ok=True)
    try:
        os.link(target, backup)
    except OSError:  # some file systems have no hard links
        shutil.copy2(target, backup)
    return backup


def _restore(target: Path, backup: Path | None) -> None:
    if backup is None:
        target.unlink(missing_ok=True)
    else:
        os.replace(backup, target)
