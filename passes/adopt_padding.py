"""A padding right before a convolution is that convolution's own (SPEC 1.0)."""

from __future__ import annotations

from torch import fx, nn

from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind, padding_of
from td_compiler.graph.states import Pass, Reading

__all__ = ["AdoptPadding"]

_POINTWISE = {Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT, Kind.IDENTITY}


class AdoptPadding(Pass[Reading]):
    """Convolutions that read a padded map get the mode of that padding as their own `padding_mode`.

    How far a convolution pads follows from its kernel (SPEC 2.4), which makes padding layers superfluous, but not how.
    """

    def requires(self, reading: Reading) -> None:
        assert facts(reading.captured.output).carries, "TraceChannels has not run"

    def apply(self, reading: Reading) -> None:
        for node in reading.captured.graph.nodes:
            if reading.kind(node) is not Kind.PAD or not facts(node).carries:
                continue
            mode, value = padding_of(node, reading.captured.module(node))
            readers = _convolutions(reading, node)
            for conv in readers:
                module = reading.captured.module(conv)
                if isinstance(module, nn.Conv2d):
                    module.padding_mode = mode  # type: ignore[assignment]
                else:
                    facts(conv).padding_mode = mode
            if readers and value:
                reading.notes.append(f"{node.target} pads with {value}; in the top-down network it is zeros.")

    def ensures(self, reading: Reading) -> None:
        """Nothing that a later pass relies on."""


def _convolutions(reading: Reading, padding: fx.Node) -> list[fx.Node]:
    """The convolutions that read a padded map, through norms and activations or not: layers and functions."""
    found: list[fx.Node] = []
    readers = list(padding.users)
    while readers:
        node = readers.pop()
        module, kind = reading.captured.module(node), reading.kind(node)
        if isinstance(module, nn.Conv2d) or (node.op == "call_function" and kind is Kind.CONV):
            found.append(node)
        elif kind in _POINTWISE:
            readers.extend(node.users)
    return found
