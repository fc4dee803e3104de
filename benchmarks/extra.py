"""Whether the extra `bench` is installed, without which nothing here can be trained or measured."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["NOT_INSTALLED", "missing"]

# One module of each library of the extra that experiments import at their start or in a training.
_MODULES = ("captum", "filelock", "foolbox", "lightning", "matplotlib", "timm", "torchmetrics", "torchvision")

NOT_INSTALLED = "what the experiments need is not installed: pip install 'td-compiler[bench]'"


def missing() -> list[str]:
    """The modules of the extra that are not installed; none if it is."""
    return [name for name in _MODULES if find_spec(name) is None]
