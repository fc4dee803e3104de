"""Turns a convolutional network into its top-down network: coarse to fine, from an image pyramid.

    >>> from td_compiler import reverse
    >>> td = reverse(model)

Importing this package does not import torch: that happens at the first use of a name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from td_compiler.errors import ConversionError

if TYPE_CHECKING:
    from td_compiler import zoo
    from td_compiler.capture.leaves import leaf
    from td_compiler.convert import reverse
    from td_compiler.graph.registry import register
    from td_compiler.network.base import TopDownNet
    from td_compiler.network.checkpoints import load_bottom_up
    from td_compiler.network.fast import fast, plain
    from td_compiler.network.fuse import fuse
    from td_compiler.network.pretrained import from_pretrained, save_pretrained
    from td_compiler.verification.verify import verify

__all__ = [
    "ConversionError",
    "TopDownNet",
    "__version__",
    "fast",
    "from_pretrained",
    "fuse",
    "leaf",
    "load_bottom_up",
    "plain",
    "register",
    "reverse",
    "save_pretrained",
    "verify",
    "zoo",
]

__version__ = "0.2.0"

_HOMES = {
    "TopDownNet": "td_compiler.network.base",
    "fast": "td_compiler.network.fast",
    "from_pretrained": "td_compiler.network.pretrained",
    "fuse": "td_compiler.network.fuse",
    "leaf": "td_compiler.capture.leaves",
    "load_bottom_up": "td_compiler.network.checkpoints",
    "plain": "td_compiler.network.fast",
    "register": "td_compiler.graph.registry",
    "reverse": "td_compiler.convert",
    "save_pretrained": "td_compiler.network.pretrained",
    "verify": "td_compiler.verification.verify",
}


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return importlib.import_module("td_compiler.zoo")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
