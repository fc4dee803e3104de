"""Files that outlive a crash, a full disk and a power cut: written beside their place, synced, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from td_compiler.files import write_together

__all__ = ["Damaged", "checksum", "read_checked", "said", "with_checksum", "write_synced"]


class Damaged(ValueError):
    """A file that is not as it was written; the message names it and says why."""


def checksum(content: bytes) -> str:
    """64 letters."""
    return hashlib.sha256(content).hexdigest()


def said(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without those that say nothing: empty or None, nested ones too.

    Keys are made of what is left, so that a field that is added later leaves them as they were.
    """
    plain = {name: said(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return {name: value for name, value in plain.items() if value not in (None, "", (), [], {})}


def with_checksum(content: bytes) -> bytes:
    """What `read_checked` reads."""
    return checksum(content).encode() + content


def read_checked(path: Path) -> bytes:
    """The content of a file that was written with its checksum.

    Raises:
        Damaged: if it does not fit the checksum.
    """
    content = path.read_bytes()
    if content[:64] != checksum(content[64:]).encode():
        raise Damaged(f"{path} is damaged: its content does not fit its checksum")
    return content[64:]


def write_synced(contents: Mapping[Path, bytes]) -> None:
    """Write files so that afterwards all of them are there or none is, also after a power cut.

    Raises:
        OSError: if one cannot be written; nothing has changed then.
    """
    write_together({path: partial(_write, content=content) for path, content in contents.items()})
    for folder in {path.parent for path in contents}:
        with contextlib.suppress(OSError):  # some systems cannot sync a folder
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
