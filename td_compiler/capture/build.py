"""From recorded runs to a graph: what differs between runs is written as what it follows (DESIGN 1)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from td_compiler.capture.meta import on_meta
from td_compiler.capture.numbers import Dim, Known, Made, Size, Term, explain
from td_compiler.capture.places import at_line
from td_compiler.capture.recording import (
    Call,
    Constant,
    Image,
    Of,
    Parameter,
    Recording,
    Result,
    Value,
    tensor_of,
    tensors_in,
    values_in,
)
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import Facts, facts, noted

__all__ = ["Ambiguous", "Builder", "Twins", "key_of", "shape_of"]

_NEAR = 12  # how many calls back a number's origin is looked for


def key_of(call: Call) -> tuple[Any, ...]:
    """What makes two calls of two runs the same call: what is called, in which module, on which line."""
    return call.op, call.target, call.stack, call.place


def shape_of(value: Value, images: torch.Tensor) -> tuple[int, ...] | None:
    """The shape of a value in the run that made it; None for what is no tensor."""
    if isinstance(value, Image):
        return tuple(images.shape)
    if not isinstance(value, Result):
        return None
    made = tensor_of(value)
    return tuple(made.shape) if isinstance(made, torch.Tensor) else None


class Ambiguous(Exception):
    """A run that differs in size and mode at once leaves open which of the two something follows."""


class Twins:
    """A second run beside the first: for each call of the first, the same call of the second.

    Attributes:
        calls: call -> its twin, as far as both runs do the same.
        parts: the first call with another successor in the second run, None if there is none: control flow that
            follows the size.
    """

    def __init__(self, base: Recording, images: torch.Tensor, other: Recording, others: torch.Tensor) -> None:
        self.images, self.others = images, others
        self.calls: dict[Call, Call] = {}
        self.parts: Call | None = None
        for call, twin in zip(base.calls, other.calls, strict=False):
            if key_of(call) != key_of(twin):
                self.parts = call
                break
            self.calls[call] = twin
        else:
            if other.error is None and len(base.calls) != len(other.calls) and base.calls:
                self.parts = base.calls[-1]

    def shapes(self, value: Value) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """A value's shapes in both runs."""
        if isinstance(value, Image):
            return tuple(self.images.shape), tuple(self.others.shape)
        if not isinstance(value, Result) or value.call not in self.calls:
            return None
        made = tensor_of(value)
        twin = tensor_of(Result(self.calls[value.call], value.at))
        if not isinstance(made, torch.Tensor) or not isinstance(twin, torch.Tensor) or made.dim() != twin.dim():
            return None
        return tuple(made.shape), tuple(twin.shape)


class Builder:
    """Writes calls as nodes.

    Attributes:
        graph: what is written.
        nodes: the node of every value so far.
        constants: tensors by the name under which `get_attr` nodes read them.
    """

    def __init__(
        self,
        images: torch.Tensor,
        tensors: dict[str, torch.Tensor],
        calls: Iterable[Call],
        twins: Sequence[Twins],
        *,
        strict: bool = False,
    ) -> None:
        self.graph = fx.Graph()
        self.nodes: dict[Any, fx.Node] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self._images = images
        self._tensors = tensors
        self._calls = set(calls)  # of this run
        self._twins = twins
        self._strict = strict  # the one run beside this one is in training as well
        self._folded: set[Call] = set()
        self._modes: dict[Call, Call] = {}
        self._recent: list[Value] = []
        self._call: Call | None = None

    def trained_as(self, pairs: dict[Call, Call]) -> None:
        """Tell the builder which call of a run in training each call is."""
        self._modes = pairs

    def image(self, name: str) -> None:
        """Write the placeholder of the images."""
        node = self.graph.placeholder(name)
        facts(node).value = self._images
        self.nodes["image"] = node

    def write(self, call: Call) -> fx.Node | None:
        """Write one call; None for a constant, which is written where it is read."""
        if self._fold(call):
            return None
        self._call = call
        twins = [pairs.calls[call] for pairs in self._twins if call in pairs.calls]
        mode = self._modes.get(call)
        args = self._settle(call.args, [t.args for t in twins], mode.args if mode else None)
        kwargs = self._settle(call.kwargs, [t.kwargs for t in twins], mode.kwargs if mode else None)
        node = self._create(call.op, call.target, args, kwargs, on_meta(call.output))
        known = facts(node)
        known.opaque, known.factor = call.notes.get("opaque", False), call.notes.get("factor")
        self.nodes[call] = node
        self._recent.append(Result(call))
        return node

    def node(self, value: Value) -> fx.Node:
        """The node of a value."""
        if isinstance(value, Image):
            return self.nodes["image"]
        if isinstance(value, Parameter):
            return self._attribute(value.path, self._tensors[value.path])
        if isinstance(value, Constant):
            return self._constant(value.tensor, value.name)
        if value in self.nodes:
            return self.nodes[value]
        if value.call in self._folded:
            return self._constant(tensor_of(value), _name_near(value.call))
        node, made = self.nodes[value.call], value.call.output
        for key in value.at:
            made = made[key]
            node = self._create("call_function", operator.getitem, (node, key), {}, on_meta(made))
        self.nodes[value] = node
        return node

    # ---- numbers

    def _settle(self, given: Any, twins: list[Any], mode: Any) -> Any:
        """An argument of this run as what it follows, told from the same argument of other runs."""
        kind = type(given)
        if isinstance(given, (Image, Parameter, Constant, Result)):
            return self.node(given)
        if kind is Dim:
            if self._holds(given.term, twins):
                return self._term(self._anchored(given.term))
            return self._number(int(given), twins, mode)
        if isinstance(given, Of):
            return self._create("call_function", getattr, (self.node(given.value), given.attribute), {}, None)
        if kind in (int, float, bool):
            return self._number(given, twins, mode)
        if isinstance(given, (tuple, list)):
            rest = [t if isinstance(t, (tuple, list)) and len(t) == len(given) else None for t in (*twins, mode)]
            made = [
                self._settle(item, [t[i] for t in rest[:-1] if t is not None], rest[-1][i] if rest[-1] else None)
                for i, item in enumerate(given)
            ]
            return made if kind is list else tuple(made)
        if isinstance(given, dict):
            named = [t if isinstance(t, dict) and t.keys() == given.keys() else None for t in (*twins, mode)]
            return {
                key: self._settle(
                    item, [t[key] for t in named[:-1] if t is not None], named[-1][key] if named[-1] else None
                )
                for key, item in given.items()
            }
        if kind is slice:
            triples = [(t.start, t.stop, t.step) for t in twins if isinstance(t, slice)]
            of_mode = (mode.start, mode.stop, mode.step) if isinstance(mode, slice) else None
            return slice(*self._settle((given.start, given.stop, given.step), triples, of_mode))
        return given

    def _holds(self, term: Term, twins: list[Any]) -> bool:
        """Whether a term gives the number of every run: not if a size on the way became a plain number, or is kept.

        A function that caches what it returns, as einops' do, hands out sizes of the run that filled its cache.
        """
        if not self._is_of_this_run(term):
            return False
        numbers = self._in_every_run(term)[1:]
        pairs = [(a, b) for a, b in zip(numbers, twins, strict=False) if a is not None and isinstance(b, (int, float))]
        return all(number == other for number, other in pairs)

    def _is_of_this_run(self, term: Any) -> bool:
        if isinstance(term, Made):
            return all(self._is_of_this_run(operand) for operand in term.operands)
        value = term.value if isinstance(term, Size) else None
        return not isinstance(value, Result) or value.call in self._calls

    def _number(self, given: Any, twins: list[Any], mode: Any) -> Any:
        for pairs, other in zip(self._twins, twins, strict=False):
            if type(other) in (int, float, bool, Dim) and other != given:
                if self._strict and isinstance(given, bool) and isinstance(other, bool):
                    continue
                plain = int(other) if isinstance(other, Dim) else other
                term = None if isinstance(given, bool) else explain(given, plain, list(self._known(pairs)))
                if term is None and self._strict:
                    raise Ambiguous
                if term is None:
                    raise ConversionError(
                        f"the number {given} at {at_line(self._call.place if self._call else None)} follows the size of"
                        f" the image or the batch (it is {other} for others) in a way that cannot be told: compute it"
                        " from a map's shape with //, *, + and -."
                    )
                return self._term(self._anchored(term))
        if type(mode) in (int, float, bool) and mode != given:
            return self._by_mode(given, mode)
        return given

    def _by_mode(self, given: Any, mode: Any) -> Any:
        """A number that is another one in training: `self.training`, or arithmetic on it."""
        training = self._attribute("training", False)
        if given is False and mode is True:
            return training
        if given is True and mode is False:
            return self._create("call_function", operator.not_, (training,), {}, True)
        made = training
        if mode - given != 1:
            made = self._create("call_function", operator.mul, (training, mode - given), {}, 0)
        return made if given == 0 else self._create("call_function", operator.add, (made, given), {}, given)

    def _known(self, pairs: Twins) -> Iterator[Known]:
        """Sizes at hand: of what the call reads, of what was computed shortly before, of the images."""
        call = self._call
        assert call is not None
        near: list[Value] = [*values_in((call.args, call.kwargs)), *self._recent[-1 : -1 - _NEAR : -1], Image()]
        for value in near:
            shapes = pairs.shapes(value)
            if shapes is not None:
                for axis, (one, other) in enumerate(zip(*shapes, strict=True)):
                    yield Size(value, axis), one, other

    def _anchored(self, term: Any) -> Any:
        """The same number told from a tensor that the call itself reads, where one has it, on the same axis if it can.

        In the top-down network a size of the image, or of a map in another stage, is another number.
        """
        if not isinstance(term, (Size, Made)) or self._call is None:
            return term
        own = [value for value in values_in((self._call.args, self._call.kwargs)) if isinstance(value, (Image, Result))]
        numbers = self._in_every_run(term)
        if isinstance(term, Size) and not own and (of_parameter := self._of_parameter(term, numbers)):
            return of_parameter
        if any(isinstance(term, Size) and _same(value, term.value) for value in own):
            return term
        if len(set(numbers)) > 1 and None not in numbers:
            first = term.axis if isinstance(term, Size) else 0  # all runs may be of square images
            for value in own:
                axes = range(len(shape_of(value, self._images) or ()))
                for axis in sorted(axes, key=lambda axis: axis != first):
                    if self._in_every_run(Size(value, axis)) == numbers:
                        return Size(value, axis)
            if isinstance(term, Size) and (nearer := self._of_map_before(term, own, numbers)):
                return nearer
        if isinstance(term, Made):
            return Made(term.function, tuple(self._anchored(operand) for operand in term.operands))
        return term

    def _of_parameter(self, term: Size, numbers: tuple[Any, ...]) -> Size | None:
        """The same size of a parameter, for a call that reads nothing else: `gamma.view(channels, 1, 1)`."""
        assert self._call is not None
        if len(set(numbers)) > 1:
            return None
        for value in values_in((self._call.args, self._call.kwargs)):
            shape = self._tensors[value.path].shape if isinstance(value, Parameter) else ()
            if shape.count(numbers[0]) == 1:
                return Size(value, shape.index(numbers[0]))
        return None

    def _of_map_before(self, term: Size, own: Sequence[Value], numbers: tuple[Any, ...]) -> Size | None:
        """The same size of the map that a list of pixels was made of, for a call that makes a map of it again."""
        axes = len(shape_of(term.value, self._images) or ())
        if any(len(shape_of(value, self._images) or ()) >= axes for value in own):
            return None
        values = list(own)
        for _ in range(_NEAR):
            read = [(v.call.args, v.call.kwargs) for v in values if isinstance(v, Result)]
            values = list(dict.fromkeys(v for v in values_in(read) if isinstance(v, (Image, Result))))
            for value in values:
                same = Size(value, term.axis)
                if len(shape_of(value, self._images) or ()) == axes and self._in_every_run(same) == numbers:
                    return same
        return None

    def _in_every_run(self, term: Any) -> tuple[Any, ...]:
        """What a term is in this run and in those beside it; None where a run did not come so far."""
        if isinstance(term, Size):
            shapes = [pairs.shapes(term.value) for pairs in self._twins]
            first = shape_of(term.value, self._images)
            rest = [None if found is None else found[1] for found in shapes]
            return tuple(None if s is None or len(s) <= term.axis else s[term.axis] for s in (first, *rest))
        if isinstance(term, Made):
            columns = [self._in_every_run(operand) for operand in term.operands]
            return tuple(None if None in row else term.function(*row) for row in zip(*columns, strict=True))
        return (term,) * (1 + len(self._twins))

    def _shape(self, value: Value) -> tuple[int, ...] | None:
        """The shape of a value in this run, or of a parameter."""
        if isinstance(value, Parameter):
            return tuple(self._tensors[value.path].shape)
        return shape_of(value, self._images)

    def _term(self, term: Term | float) -> Any:
        """A term as nodes."""
        if isinstance(term, Size):
            shape = self._shape(term.value)
            number = shape[term.axis] if shape else 0
            return self._create("call_method", "size", (self.node(term.value), term.axis), {}, number)
        if isinstance(term, Made):
            operands = tuple(self._term(operand) for operand in term.operands)
            numbers = [facts(o).value if isinstance(o, fx.Node) else o for o in operands]
            return self._create("call_function", term.function, operands, {}, term.function(*numbers))
        return term

    # ---- constants

    def _fold(self, call: Call) -> bool:
        """Whether a call computes the same tensor whatever the images are."""
        if call.op == "call_module" or call.notes.get("random") or not _is_real(call.output):
            return False
        if any(True for _ in _dims((call.args, call.kwargs))):
            return False
        for value in values_in((call.args, call.kwargs)):
            if not (isinstance(value, Constant) or (isinstance(value, Result) and value.call in self._folded)):
                return False
        for pairs in self._twins:
            if call in pairs.calls and not _equal(call.output, pairs.calls[call].output):
                return False
        if call in self._modes and not _equal(call.output, self._modes[call].output):
            return False
        self._folded.add(call)
        return True

    def _constant(self, tensor: torch.Tensor, name: str) -> fx.Node:
        for known, value in self.constants.items():
            if value is tensor:
                return self._attribute(known, tensor)
        unique, count = name, 0
        while unique in self.constants or unique in self._tensors:
            count += 1
            unique = f"{name}{count}"
        self.constants[unique] = tensor
        return self._attribute(unique, tensor)

    def _attribute(self, path: str, value: Any) -> fx.Node:
        key = ("attribute", path)
        if key not in self.nodes:
            self.nodes[key] = self._create("get_attr", path, (), {}, on_meta(value))
        return self.nodes[key]

    def _create(self, op: str, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        node = self.graph.create_node(op, target, args, kwargs)
        known = noted(node, Facts(value))
        if self._call is not None:
            stack = self._call.stack
            if op == "call_module":
                stack = (*stack, (target, type(self._call.module)))
            known.modules = tuple(dict(stack).items())
            known.place = self._call.place
        return node


def _dims(item: Any) -> Iterator[Dim]:
    if isinstance(item, Dim):
        yield item
    elif isinstance(item, (tuple, list)):
        for each in item:
            yield from _dims(each)
    elif isinstance(item, dict):
        for each in item.values():
            yield from _dims(each)


def _same(one: Value, other: Value) -> bool:
    return one == other or (isinstance(one, Image) and isinstance(other, Image))


def _is_real(output: Any) -> bool:
    tensors = list(tensors_in(output))
    return bool(tensors) and not any(tensor.is_meta for tensor in tensors)


def _equal(one: Any, other: Any) -> bool:
    pairs = list(tensors_in(one)), list(tensors_in(other))
    return len(pairs[0]) == len(pairs[1]) and all(
        a.shape == b.shape and not b.is_meta and bool(torch.equal(a, b)) for a, b in zip(*pairs, strict=True)
    )


def _name_near(call: Call) -> str:
    home = call.stack[-1][0] if call.stack else ""
    return f"{home}.constant" if home else "constant"
