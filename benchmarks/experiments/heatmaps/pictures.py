"""Pictures as text, so that they fit into a line of results: PNG in base64, eight bits a channel."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decode", "encode"]


def encode(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1], C 1 or 3, as text."""
    from PIL import Image

    pixels = (image.detach().clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def decode(text: str) -> NDArray[np.float32]:
    """What `encode` has written: (H, W) for C = 1, (H, W, 3) for C = 3, in [0, 1]."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image, dtype=np.float32) / np.float32(255)
