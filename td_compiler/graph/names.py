"""Names from networks are data: which of them may stand in Python text as they are, and which must be quoted."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Container

__all__ = ["GENERATED", "camel_case", "free_name", "is_attribute", "is_written"]

GENERATED = "td_compiler.generated."
"""What the modules of networks' texts are called."""


def is_attribute(name: str) -> bool:
    """Whether `x.name` in Python text, in a class too, reads the attribute of exactly this name.

    Python brings names in text to one form of Unicode's (NFKC), and changes `__name` inside a class.
    """
    is_mangled = name.startswith("__") and not name.endswith("__")
    is_plain = name.isidentifier() and not keyword.iskeyword(name) and not is_mangled
    return is_plain and unicodedata.normalize("NFKC", name) == name


def is_written(kind: type) -> bool:
    """Whether a class is one of a network's own text, executed (:mod:`td_compiler.network.program`)."""
    return kind.__module__.startswith(GENERATED)


def camel_case(name: str) -> str:
    """A class's name from a lower-case one: `layer_norm` is LayerNorm."""
    return "".join(part[:1].upper() + part[1:] for part in name.strip("_").split("_"))


def free_name(name: str, taken: Container[str]) -> str:
    """The name itself, or with as many underscores behind as make it none of those taken."""
    while name in taken:
        name += "_"
    return name
