"""Arrays of numbers as text, so that they fit into a line of results."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed", "unpacked"]


def packed(values: Any) -> dict[str, Any]:
    """An array or a tensor on the CPU, of booleans, of whole numbers from 0 to 65,535 or of others, as JSON."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        small = array.astype(np.float32)
    else:
        small = array.astype(np.uint8 if array.size == 0 or array.max() < 256 else np.uint16)
    text = base64.b64encode(zlib.compress(small.tobytes(), 9)).decode()
    return {"shape": list(array.shape), "bytes": small.itemsize, "text": text}


def unpacked(content: dict[str, Any]) -> NDArray[Any]:
    """What was packed, as int64, booleans as 0 and 1; what was no whole number as float64, of a float32's precision."""
    shape: Sequence[int] = content["shape"]
    kind = {1: np.uint8, 2: np.uint16, 4: np.float32}[content["bytes"]]
    array = np.frombuffer(zlib.decompress(base64.b64decode(content["text"])), kind).reshape(shape)
    return array.astype(np.float64 if kind is np.float32 else np.int64)
