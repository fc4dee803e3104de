"""A padding right before a convolution is that convolution's own (SPEC 1.0)."""

from __future__ import annotations

from torch import fx, nn

from td_compiler.capture.places import at_line
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import facts
from td_compiler.graph.operators import Kind, padding_of
from td_compiler.graph.states import Pass, Reading
from td_compiler.passes.nodes import place_of
from td_compiler.passes.shifts import Ends, ends_of, is_moved, pixels_added

__all__ = ["AdoptPadding"]

_KEEPS_ZEROS = {Kind.ACTIVATION, Kind.DROPOUT, Kind.IDENTITY}
_POINTWISE = {*_KEEPS_ZEROS, Kind.NORM}


class AdoptPadding(Pass[Reading]):
    """Convolutions that read a padded map get the mode of that padding as their own `padding_mode`.

    How far a convolution pads follows from its kernel (SPEC 2.4), which makes padding layers superfluous, but not how.
    A padding that no convolution can do itself (with another number than zero, before a norm, more on one side) stays
    a step of its own, `pads_for`. What pads and crops its map so that it has its size again moves it, and `stays`; so
    do a pooling without stride and what gives its map its size again.
    """

    def requires(self, reading: Reading) -> None:
        assert facts(reading.captured.output).carries, "TraceChannels has not run"

    def apply(self, reading: Reading) -> None:
        for node in reading.captured.graph.nodes:
            if not facts(node).carries or facts(node).stays:
                continue
            is_padding, added = reading.kind(node) is Kind.PAD, pixels_added(reading, node)
            if added is None:
                continue
            ends = ends_of(reading, node)
            if is_moved(reading, node, ends):
                for step in (*ends.between, *ends.returns):
                    facts(step).stays = True
            elif steps := _restored(reading, node, ends):
                for step in steps:
                    facts(step).stays = True
            elif is_padding and ends.convolutions:
                _check(reading, node, ends)
                _adopt(reading, node, ends)
            elif not is_padding and (conv := _cropped(reading, node)) is not None:
                facts(node).stays = facts(conv).stays = True

    def ensures(self, reading: Reading) -> None:
        """Nothing that a later pass relies on."""


def _adopt(reading: Reading, padding: fx.Node, ends: Ends) -> None:
    mode, value = padding_of(padding, reading.captured.module(padding))
    kinds = {reading.kind(node) for node in ends.between[1:]}
    if value or (mode == "zeros" and not kinds <= _KEEPS_ZEROS) or _is_uneven(reading, padding, ends):
        facts(padding).pads_for = tuple(ends.convolutions)
        for conv in ends.convolutions:
            facts(conv).padded_by = padding
        return
    for conv in ends.convolutions if kinds <= _POINTWISE else ():
        module = reading.captured.module(conv)
        if isinstance(module, nn.Conv2d):
            module.padding_mode = mode  # type: ignore[assignment]
        else:
            facts(conv).padding_mode = mode


def _is_uneven(reading: Reading, padding: fx.Node, ends: Ends) -> bool:
    """Whether a padding that keeps the size of the map, behind a convolution without stride, moves the map besides."""
    added, before = pixels_added(reading, padding), facts(padding.all_input_nodes[0]).size
    assert added is not None
    if any(facts(conv).size != before or reading.stride(conv) != (1, 1) for conv in ends.convolutions):
        return False
    return any(behind - front not in {0, 1} for front, behind in added)


def _cropped(reading: Reading, crop: fx.Node) -> fx.Node | None:
    """The convolution without stride whose map is cropped to the size that it reads, but more on one side."""
    conv, cut = crop.all_input_nodes[0], pixels_added(reading, crop)
    while reading.kind(conv) in _POINTWISE:
        conv = next(n for n in conv.all_input_nodes if facts(n).carries)
    layer = reading.layer(conv)
    if not isinstance(layer, nn.Conv2d) or reading.stride(conv) != (1, 1) or cut is None:
        return None
    keeps = facts(crop).size == facts(conv.all_input_nodes[0]).size
    return conv if keeps and any(behind - front not in {0, 1} for front, behind in cut) else None


def _restored(reading: Reading, node: fx.Node, ends: Ends) -> list[fx.Node]:
    """A padding or crop, and what is before it, up to the pooling without stride whose map gets its size again by it.

    A padding that convolutions need which do not pad themselves is theirs.
    """
    steps = [node, node.all_input_nodes[0]]
    while reading.kind(steps[-1]) in _POINTWISE:
        steps.append(next(n for n in steps[-1].all_input_nodes if facts(n).carries))
    pool = steps[-1]
    if reading.kind(pool) is not Kind.POOL or reading.stride(pool) != (1, 1) or reading.row(pool) is None:
        return []
    size = facts(next(n for n in pool.all_input_nodes if facts(n).carries)).size
    if facts(node).size != size or facts(pool).size == size:
        return []
    return [] if any(_needs_padding(reading, conv) for conv in ends.convolutions) else steps


def _needs_padding(reading: Reading, conv: fx.Node) -> bool:
    layer = reading.layer(conv)
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1 and layer.padding in {(0, 0), "valid"}


def _check(reading: Reading, padding: fx.Node, ends: Ends) -> None:
    """Refuse a padded map that is convolved and, elsewhere, cropped to its size but moved.

    Raises:
        ConversionError: naming the padding.
    """
    added = pixels_added(reading, padding)
    for node in ends.returns:
        cut = pixels_added(reading, node)
        centred = cut is not None and added == tuple((-front, -behind) for front, behind in cut)
        if cut is not None and not centred:
            raise ConversionError(
                f"the map that {place_of(padding)!r} pads at {at_line(facts(padding).place)} is convolved and, beside"
                " that, cropped so that it moves: pad it for each of the two, and the convolution by its own `padding`."
            )
