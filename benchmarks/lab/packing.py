"""Arrays of whole numbers as text, so that they fit into a line of results."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed", "unpacked"]


def packed(values: Any) -> dict[str, Any]:
    """An array or a tensor on the CPU of booleans or of whole numbers from 0 to 65,535, as JSON."""
    array = np.asarray(values)
    small = array.astype(np.uint8 if array.size == 0 or array.max() < 256 else np.uint16)
    text = base64.b64encode(zlib.compress(small.tobytes(), 9)).decode()
    return {"shape": list(array.shape), "bytes": small.itemsize, "text": text}


def unpacked(content: dict[str, Any]) -> NDArray[np.int64]:
    """What was packed; booleans are 0 and 1."""
    shape: Sequence[int] = content["shape"]
    kind = np.uint8 if content["bytes"] == 1 else np.uint16
    return np.frombuffer(zlib.decompress(base64.b64decode(content["text"])), kind).reshape(shape).astype(np.int64)
