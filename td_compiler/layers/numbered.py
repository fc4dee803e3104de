"""Modules that a number names, such as the merge of a scale.

Everything here uses torch alone: emitted source carries these definitions verbatim.
"""

from torch import nn

__all__ = ["Numbered"]


class Numbered(nn.ModuleDict):
    """Modules by number: `merge[16]` has its weights under `merge.16`."""

    def __init__(self, modules: dict[int, nn.Module]) -> None:
        super().__init__({str(number): modules[number] for number in modules})

    def __getitem__(self, number: int | str) -> nn.Module:
        return super().__getitem__(str(number))
