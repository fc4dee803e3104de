"""A padding right before a convolution is that convolution's own (SPEC 1.0)."""

from __future__ import annotations

from torch import fx, nn

from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind, padding_of
from td_compiler.graph.states import Conversion, Pass

__all__ = ["AdoptPadding"]

_POINTWISE = {Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT, Kind.IDENTITY}


class AdoptPadding(Pass):
    """Convolutions that read a padded map get the mode of that padding as their own `padding_mode`.

    How far a convolution pads follows from its kernel (SPEC 2.4), which makes padding layers superfluous, but not how.
    """

    def requires(self, conversion: Conversion) -> None:
        assert facts(conversion.captured.output).carries, "TraceChannels has not run"

    def apply(self, conversion: Conversion) -> None:
        for node in conversion.captured.graph.nodes:
            if conversion.kind(node) is not Kind.PAD or not facts(node).carries:
                continue
            mode, value = padding_of(node, conversion.captured.module(node))
            readers = _convolutions(conversion, node)
            for conv in readers:
                module = conversion.captured.module(conv)
                if isinstance(module, nn.Conv2d):
                    module.padding_mode = mode  # type: ignore[assignment]
                else:
                    facts(conv).padding_mode = mode
            if readers and value:
                conversion.notes.append(f"{node.target} pads with {value}; in the top-down network it is zeros.")

    def ensures(self, conversion: Conversion) -> None:
        """Nothing that a later pass relies on."""


def _convolutions(conversion: Conversion, padding: fx.Node) -> list[fx.Node]:
    """The convolutions that read a padded map, through norms and activations or not: layers and functions."""
    found: list[fx.Node] = []
    readers = list(padding.users)
    while readers:
        node = readers.pop()
        module, kind = conversion.captured.module(node), conversion.kind(node)
        if isinstance(module, nn.Conv2d) or (node.op == "call_function" and kind is Kind.CONV):
            found.append(node)
        elif kind in _POINTWISE:
            readers.extend(node.users)
    return found
