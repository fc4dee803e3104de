"""Find the number of channels everywhere (SPEC 2.6), and take away what turns out not to be needed (SPEC 2.4).

The channels of every tensor are a list of parts, each a variable (`td_compiler.graph.parts`). The operator table and
the shapes of the bottom-up network say how an operator relates the lists of its inputs and its output. Layers that
choose their width then say, in running order, what they want: the first to speak of a part decides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from td_compiler.capture.evaluate import evaluate
from td_compiler.errors import ConversionError
from td_compiler.graph.checks import check_layers, check_merge, check_stage
from td_compiler.graph.moves import inserted
from td_compiler.graph.notes import axis_of, facts, origin_of, plan, sides_of, source_of, value_of
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.parts import Channels, Part, cut, equal_parts, equate, fix, fresh, parts_of, want, width_of
from td_compiler.graph.states import Pass, TopDown, layer_of, operator_of
from td_compiler.graph.units import Layer
from td_compiler.graph.walks import arguments
from td_compiler.network.segments import handed_on
from td_compiler.passes.nodes import (
    SPLITS,
    Cut,
    channel_cut,
    channel_index,
    channel_padding,
    parameters_behind,
    pieces_of,
    place_of,
    runs_along_channels,
    zero_channels,
)
from td_compiler.passes.prune import drop_empty, prune
from td_compiler.passes.trace_channels import is_map

__all__ = ["SetWidths"]


class SetWidths(Pass[TopDown]):
    """Sets `width` (channels) in every plan; prunes 1x1 transitions and projections between equal widths."""

    def requires(self, top_down: TopDown) -> None:
        assert all(stage.entry is not None for stage in top_down.stages[1:]), "InsertEntries has not run"
        assert "ReplaceHead" in top_down.done, "ReplaceHead has not run"
        plain = [stage for stage in top_down.stages if stage.transition == "plain"]
        assert all(stage.adapted is not None for stage in plain), "InsertTransitions has not run"
        for stage in top_down.stages:
            check_merge(top_down, stage)

    def apply(self, top_down: TopDown) -> None:
        _Solver(top_down).solve()
        if prune(top_down):
            _Solver(top_down).solve()
        drop_empty(top_down)
        _note_features(top_down)

    def ensures(self, top_down: TopDown) -> None:
        for graph in top_down.graphs():
            maps = [n for n in graph.nodes if n.op == "call_module"]
            assert all(plan(n).carries for n in maps)
        for stage in top_down.stages:
            check_stage(top_down, stage)
        check_layers(top_down)


def _note_features(top_down: TopDown) -> None:
    """A network without classifier returns its pooled features: as many as its last stage has, not as the source's."""
    width, bottom_up, num_classes = top_down.width, top_down.bottom_up, top_down.options.num_classes
    expected = num_classes or facts(bottom_up.captured.output).value.shape[1]
    if width == expected or num_classes == 0:
        return
    read = plan(next(iter(top_down.head_graph.nodes))).width
    if width * facts(bottom_up.features).width != expected * read:
        raise ConversionError(
            f"the output is no class score but {expected} features of a flattened map: give the network a classifier,"
            " or a global pooling for a head."
        )
    top_down.notes.append(
        f"The network has no classifier: it returns its {width} features, where the source returns {expected}."
    )


class _Solver:
    """Relates the channels of all nodes of all graphs, in running order, then gives every part its width."""

    def __init__(self, top_down: TopDown) -> None:
        self.top_down = top_down
        self.channels: dict[fx.Node, Channels] = {}
        self._pieces: dict[fx.Node, list[Channels]] = {}  # a split -> what it makes
        self._padded: dict[fx.Node, list[Channels]] = {}  # a padding -> what it puts in front and behind
        self._cuts: dict[fx.Node, tuple[Channels, Channels]] = {}  # a slice -> what lies before it, what it takes
        self._resized: dict[fx.Node, dict[int, tuple[Channels, int]]] = {}  # parameter -> axis -> its channels, groups
        self._wishes: list[tuple[int, Channels, Callable[[], int]]] = []  # (place in the order, channels, how many)
        self._multiples: list[tuple[Channels, int]] = []
        self._read: list[Channels] = []  # what layers with parameters read
        self._starts: dict[str, int] = {}  # unit -> the place of its first node

    def solve(self) -> None:
        """Relate, then let the wishes be heard in running order, then note every width."""
        place = 0
        carried: list[Channels] = []  # a segment's `x` and `older` are outputs of the one before
        for graph in self.top_down.graphs():
            for node in graph.nodes:
                place += 1
                self._starts.setdefault(plan(node).unit, place)
                if node.op == "output":
                    carried = [self.channels[n] for n in handed_on(graph)]
                elif node.op == "placeholder":
                    image = fresh(channels := self.top_down.image_channels, channels)
                    is_image = node.target == "image" or not carried
                    self.channels[node] = image if is_image else carried[node.target == "older"]
                elif self._carries(node):
                    self.channels[node] = self._relate(node, place)
                    if total := plan(node).total:
                        start = self._starts[plan(node).unit]
                        self._wish(start - 1, self.channels[node], _constant(total))
        self._settle()
        self._note()

    def _carries(self, node: fx.Node) -> bool:
        """Whether a node carries image data: no size, no parameter, nothing made of these."""
        return node.op != "get_attr" and (plan(node).source is None or facts(source_of(node)).carries)

    def _wish(self, place: int, channels: Channels, total: Callable[[], int]) -> None:
        self._wishes.append((place, channels, total))

    def _settle(self) -> None:
        for channels in self._read:
            if len(parts := parts_of(channels)) == 1:
                (part,) = parts
                part.least = max(1, part.least)
        together: dict[Part, list[tuple[Channels, int]]] = defaultdict(list)
        for channels, multiple in self._multiples:
            parts = parts_of(channels)
            if len(parts) == 1:
                (part,) = parts
                part.multiple = math.lcm(part.multiple, multiple // math.gcd(multiple, parts[part]))
            else:
                for part in parts:
                    together[part].append((channels, multiple))
        for _, channels, total in sorted(self._wishes, key=lambda wish: wish[0]):
            want(channels, total(), together.__getitem__)

    def _note(self) -> None:
        for node, channels in self.channels.items():
            plan(node).width = self._width(channels, node)
        for node, (before, taken) in self._cuts.items():
            plan(node).bounds = self._width(before, node), self._width([*before, *taken], node)
        for node, pieces in self._pieces.items():
            plan(node).pieces = [self._width(piece, node) for piece in pieces]
        for node, sides in self._padded.items():
            plan(node).pads = [self._width(side, node) for side in sides]
        for node, axes in self._resized.items():
            plan(node).widths = {axis: self._width(c, node) // groups for axis, (c, groups) in axes.items()}

    def _width(self, channels: Channels, node: fx.Node) -> int:
        width = width_of(channels)
        if width is None:
            raise ConversionError(f"the width of {place_of(origin_of(node))!r} does not follow from any layer.")
        return width

    # How one operator relates channels.

    def _relate(self, node: fx.Node, place: int) -> Channels:
        """The channels of a node's output."""
        row, source = operator_of(self.top_down, node), plan(node).source
        maps = self._maps(node)
        if self._joins_channels(node):
            return self._join(node)
        if row is not None and row.width is Width.FREE:
            return self._relate_layer(node, maps, place)
        if source is None:
            for other in maps[1:]:
                equate(self.channels[maps[0]], self.channels[other])
            return self.channels[maps[0]]
        return self._relate_by_shape(node, maps, place)

    def _maps(self, node: fx.Node) -> list[fx.Node]:
        """The inputs whose channels an operator relates; the image that an upsampling reads its size from is none."""
        maps = [n for n in arguments(node) if n in self.channels]
        row = operator_of(self.top_down, node)
        return maps[:1] if row is not None and row.kind is Kind.UPSAMPLE else maps

    def _joins_channels(self, node: fx.Node) -> bool:
        """Whether a node puts the channels of its inputs one after the other."""
        source, row = plan(node).source, operator_of(self.top_down, node)
        is_sum = row is not None and row.width is Width.SUM
        if source is None:
            return is_sum
        axis, dims = facts(source).axis, facts(source).value.dim() if is_sum else 0
        if not is_sum:  # what stands for all channels, on a new axis that is theirs
            without = all(facts(n).carries and facts(n).axis is None for n in source.all_input_nodes)
            return without and axis is not None and inserted(source, 3) == [axis] and facts(source).width > 1
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return isinstance(dim, int) and dim % dims == axis

    def _join(self, node: fx.Node) -> Channels:
        """The inputs' channels one after the other; a constant among them keeps its own."""
        source, joined = plan(node).source, []
        for n in arguments(node):
            zeros = (
                zero_channels(source_of(n), axis_of(source))
                if source is not None and plan(n).source is not None
                else None
            )
            if zeros is not None:
                self.channels[n] = fresh(zeros, default=zeros, least=0)
            if n in self.channels:
                joined += self.channels[n]
            elif isinstance(value := value_of(n), torch.Tensor) and source is not None:
                known = int(value.shape[axis_of(source)])
                joined += fresh(known, known)
        return joined

    def _relate_layer(self, node: fx.Node, maps: list[fx.Node], place: int) -> Channels:
        """A layer that chooses its width, unless it has one group per input channel: then it keeps it or a multiple."""
        layer, source = layer_of(self.top_down, node), plan(node).source
        read = self.channels[maps[0]]
        if source is not None and runs_along_channels(self.top_down.bottom_up, source):
            return read
        self._read.append(read)
        for other in maps[1:]:  # what mixes the filters, one number for each expert
            fix(self.channels[other], facts(source_of(other)).width)
        wish = plan(node).wanted or (facts(source).width if source is not None else 0)
        groups, inputs, outputs = _grouping(node, layer)
        is_own = layer is None or layer.own  # a new layer takes the groups that fit
        if groups == inputs == outputs > 1:
            made = read
        elif groups == inputs > 1:
            made = fresh(outputs)
            self._wish(place, made, lambda: (width_of(read) or 1) * max(1, round(wish / (width_of(read) or 1))))
        else:
            made = fresh(facts(source).width if source is not None else wish)
            self._wish(place, made, lambda: wish)
            if is_own and groups > 1:
                self._multiples += [(made, groups), (read, groups)]
        self._resize_arguments(node, read, made, groups)
        return made

    def _resize_arguments(self, node: fx.Node, read: Channels, made: Channels, groups: int = 1) -> None:
        """Parameters that a function takes, by the operator table's axes."""
        row = operator_of(self.top_down, node)
        for name, (at, axes) in (row.arguments if row is not None else {}).items():
            given = node.kwargs.get(name, node.args[at] if len(node.args) > at else None)
            if not isinstance(given, fx.Node) or given in self.channels:
                continue
            for axis, which in enumerate(axes):
                if which == "in/groups" and made is read:  # one filter for each channel
                    continue
                for parameter, own in parameters_behind(given, axis):
                    channels = made if which == "out" else read
                    self._resize(parameter, own, channels, groups if which == "in/groups" else 1)

    def _resize(self, parameter: fx.Node, axis: int, channels: Channels, groups: int = 1) -> None:
        known = self._resized.setdefault(parameter, {}).setdefault(axis, (channels, groups))
        if groups == known[1]:
            equate(known[0], channels)

    def _relate_by_shape(self, node: fx.Node, maps: list[fx.Node], place: int) -> Channels:
        """By the bottom-up widths: what was equal stays equal, a part stays the same part."""
        source, row = source_of(node), operator_of(self.top_down, node)
        own = self._own_widths(source, maps)
        channels = self.channels[maps[0]]
        if (indices := channel_index(node)) is not None:
            return self._pick(indices, channels, own[0])
        if row is None or row.width is Width.UNKNOWN:
            self._check_plain(node)
        if facts(source).axis == 1 and facts(source).size is None and self._folds_map(source):
            made = fresh(facts(source).width)
            self._wish(place, made, lambda: (width_of(channels) or 0) * _pixels(source))
            return made
        if maps[0] in self._pieces and isinstance(at := node.args[1], int):
            return self._pieces[maps[0]][at]
        if (pieces := pieces_of(node)) is not None:
            return self._split(node, pieces, channels)
        if (taken := channel_cut(source)) is not None:
            return self._slice(node, taken, channels, own[0])
        if padding := channel_padding(self.top_down.bottom_up, node):
            sides = self._padded[node] = [fresh(n, default=n, least=0) for n in padding]
            return [*sides[0], *channels, *sides[1]]
        if (pooled := self._pooled_map(source)) is not None:
            read = maps[0]
            while plan(read).source is not None and not is_map(source_of(read)):
                read = self._maps(read)[0]
            made, of_map = fresh(facts(source).width), self.channels[read]
            self._wish(place, made, lambda: self._features(source, pooled, width_of(of_map) or 0))
            return made
        made = self._follow(node, maps, own, place)
        if row is not None and row.axes:
            self._read.append(made)
        self._resize_arguments(node, channels, made)
        self._resize_parameters(node, made)
        return made

    def _pooled_map(self, source: fx.Node) -> fx.Node | None:
        """The map that a function or module of a user's own makes features of, if they are no multiple of its channels
        (a covariance of all pairs of them); None for any other node.
        """
        before = [n for n in source.all_input_nodes if facts(n).carries]
        plain = facts(source).axis == 1 and not any(map(is_map, (source, *before)))
        if source not in self.top_down.bottom_up.head or not plain or facts(source).width == facts(before[0]).width:
            return None
        found: set[fx.Node] = set()
        while before:
            node = before.pop()
            if is_map(node):
                found.add(node)
            else:
                before += [n for n in node.all_input_nodes if facts(n).carries]
        return found.pop() if len(found) == 1 else None

    def _features(self, source: fx.Node, start: fx.Node, width: int) -> int:
        """How many features there are of a map with so many channels: what the source's own code makes of one."""
        given = facts(start).value
        values: dict[fx.Node, Any] = {start: given.new_empty((len(given), width, *given.shape[2:]))}
        behind, modules = {start}, self.top_down.bottom_up.captured.modules
        for node in self.top_down.bottom_up.captured.graph.nodes:
            if not behind.isdisjoint(node.all_input_nodes):
                behind.add(node)
                try:
                    values[node] = evaluate(node, modules, lambda n: values.get(n, facts(n).value))
                except Exception:  # it takes no other number of channels; that is said where the network is run
                    break
                if node is source:
                    return int(values[node].shape[1])
        return facts(source).width

    def _follow(self, node: fx.Node, maps: list[fx.Node], own: list[int], place: int) -> Channels:
        source = source_of(node)
        width, most = facts(source).width, max(own)
        first = own.index(most)
        channels = self.channels[maps[first]]
        if width == 1 < most:  # a mean over the channels
            made = fresh(1, 1)
        elif most == 1 < width:  # one channel that stands for many: as many as it meets
            made = fresh(width, default=width)
        elif width == most:
            refolded = facts(source).axis is not None and self._is_folded(source) and len(parts_of(channels)) > 1
            made = fresh(width) if refolded else channels  # the order is another one
            if refolded:
                self._wish(place, made, lambda: width_of(channels) or 0)
        else:
            share = Fraction(width, most)
            made = equal_parts(channels, share.denominator)[0] * share.numerator
        for other, known in zip(maps, own, strict=True):
            if known == 1 < most:  # one channel that stands for all
                fix(self.channels[other], 1)
            elif known == most:
                equate(channels, self.channels[other])
            elif known == width:
                equate(made, self.channels[other])
        return made

    def _is_folded(self, source: fx.Node) -> bool:
        return all(facts(n).axis is None for n in source.all_input_nodes if facts(n).carries)

    def _own_widths(self, source: fx.Node, maps: list[fx.Node]) -> list[int]:
        """The widths of a node's inputs in the bottom-up network, where they stand in the same places."""
        before = [facts(n).width for n in arguments(source) if facts(n).carries]
        return before if len(before) == len(maps) else before[:1] * len(maps)

    def _split(self, node: fx.Node, sizes: list[int], channels: Channels) -> Channels:
        if str(getattr(node.target, "__name__", node.target)) not in SPLITS:
            pieces = equal_parts(channels, len(sizes))
        else:
            pieces, rest = [], channels
            for i, size in enumerate(sizes):
                piece, rest = cut(rest, size, sum(sizes[i:]))
                pieces.append(piece)
        self._pieces[node] = pieces
        return channels

    def _slice(self, node: fx.Node, taken: Cut, channels: Channels, own: int) -> Channels:
        size = taken.stop - taken.start
        if size == own:
            self._cuts[node] = [], channels
            return channels
        before, rest = cut(channels, taken.start, own)
        made, _ = cut(rest, size, own - taken.start)
        self._cuts[node] = before, made
        return made

    def _pick(self, indices: fx.Node | list[int], channels: Channels, own: int) -> Channels:
        """Channels by their numbers: a permutation goes with the width, any other choice keeps it."""
        number = len(indices) if isinstance(indices, list) else facts(source_of(indices)).value.numel()
        if isinstance(indices, fx.Node):
            for parameter, axis in parameters_behind(indices, 0):
                plan(parameter).picks = own
                self._resize(parameter, axis, channels)
        return channels if number == own else fresh(number, number)

    def _resize_parameters(self, node: fx.Node, channels: Channels) -> None:
        """Parameters that meet a map channel by channel."""
        source = source_of(node)
        if facts(source).axis is None:
            return
        for given in arguments(node):
            value = value_of(given)
            if given in self.channels or not isinstance(value, torch.Tensor) or not value.dim():
                continue
            axis = facts(source).axis - facts(source).value.dim() + value.dim()
            if axis >= 0 and value.shape[axis] == facts(source).width > 1:
                for parameter, own in parameters_behind(given, axis):
                    self._resize(parameter, own, channels)

    def _check_plain(self, node: fx.Node) -> None:
        """Without a rule in the table an operator may not have parameters: they would say how channels flow."""
        layer = layer_of(self.top_down, node)
        of_layer = list(layer.prototype.parameters()) if layer else []
        of_function = [str(n.target) for n in arguments(node) if n.op == "get_attr" and n.target != "training"]
        if of_layer or of_function:
            what = type(layer.prototype).__name__ if layer else getattr(node.target, "__name__", node.target)
            reads = f", which reads {of_function[0]}," if of_function else ""
            raise ConversionError(
                f"no rule says how channels flow through {what}{reads} at {place_of(source_of(node))!r}:"
                " say it with td_compiler.register (docs/adding-an-operator.md)."
            )

    def _folds_map(self, source: fx.Node) -> bool:
        """Whether a node folds a map's pixels into features."""
        if source not in self.top_down.bottom_up.head:
            return False
        before = next(n for n in source.all_input_nodes if facts(n).carries)
        value = facts(source).value
        if not isinstance(value, torch.Tensor) or value.dim() != 2 or not is_map(before):
            return False
        return facts(source).width != facts(before).width


def _pixels(source: fx.Node) -> int:
    """Height times width that a flatten folds into the features: the size that its map has in the source too."""
    before = next(n for n in source.all_input_nodes if facts(n).carries)
    return math.prod(sides_of(before))


def _constant(total: int) -> Callable[[], int]:
    return lambda: total


def _grouping(node: fx.Node, layer: Layer | None) -> tuple[int, int, int]:
    """The groups, inputs and outputs of a convolution in the bottom-up network, (1, 0, 0) for other layers."""
    if layer is not None:
        of = layer.prototype
        return tuple(int(getattr(of, name, n)) for name, n in (("groups", 1), ("in_channels", 0), ("out_channels", 0)))  # type: ignore[return-value]
    source = source_of(node)
    given = source.kwargs.get("groups", source.args[6] if len(source.args) > 6 else 1)
    groups: Any = facts(given).value if isinstance(given, fx.Node) else given
    return groups, facts(source.all_input_nodes[0]).width, facts(source).width
