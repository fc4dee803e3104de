"""Names from networks are data: which of them may stand in Python text as they are, and which must be quoted."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Container

__all__ = ["free_name", "is_attribute"]


def is_attribute(name: str) -> bool:
    """Whether `x.name` in Python text, in a class too, reads the attribute of exactly this name.

    Python brings names in text to one form of Unicode's (NFKC), and changes `__name` inside a class.
    """
    is_mangled = name.startswith("__") and not name.endswith("__")
    is_plain = name.isidentifier() and not keyword.iskeyword(name) and not is_mangled
    return is_plain and unicodedata.normalize("NFKC", name) == name


def free_name(name: str, taken: Container[str]) -> str:
    """The name itself, or with as many underscores behind as make it none of those taken."""
    while name in taken:
        name += "_"
    return name
