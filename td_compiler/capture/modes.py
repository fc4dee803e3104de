"""What runs in training alone: found by holding a run in training against one in evaluation (SPEC 1.1)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import nn

from td_compiler.capture.build import Builder, key_of
from td_compiler.capture.numbers import Dim, Made, Size
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
    values_in,
)
from td_compiler.graph.notes import facts
from td_compiler.layers.steps import TrainingStep

__all__ = ["aligned", "drop_unread", "training_steps", "written_by_hand"]


def aligned(base: Recording, training: Recording) -> dict[Call, Call]:
    """For each call of a run in evaluation the same call of a run in training, where there is one."""
    keys, others = [key_of(call) for call in base.calls], [key_of(call) for call in training.calls]
    if keys == others:
        return dict(zip(base.calls, training.calls, strict=True))
    pairs: dict[Call, Call] = {}
    for start, other, size in SequenceMatcher(None, keys, others, autojunk=False).get_matching_blocks():
        for i in range(size):
            pairs[base.calls[start + i]] = training.calls[other + i]
    return pairs


def drop_unread(training: Recording, base: Recording) -> None:
    """Leave out of a run in training the calls that it makes beside those in evaluation and that nothing reads.

    Such as those by which a norm that is no layer of torch's counts its batches.
    """
    keys = [key_of(call) for call in base.calls]
    others = [key_of(call) for call in training.calls]
    if keys == others:
        return
    given = [(call.args, call.kwargs, call.notes) for call in training.calls]
    held = [(span.args, span.kwargs, span.output) for span in training.spans]
    values: list[Value] = []
    _find_values((given, held, training.outputs), values)
    read = {value.call for value in values if isinstance(value, Result)}
    kept: list[int] = []
    for i, key in enumerate(others):
        if len(kept) < len(keys) and key == keys[len(kept)]:
            kept.append(i)
        elif training.calls[i] in read:
            return
    training.calls = [training.calls[i] for i in kept]
    for span in training.spans:
        span.start, span.stop = bisect_left(kept, span.start), bisect_left(kept, span.stop)


def _find_values(item: Any, found: list[Value]) -> None:
    """Find all values in an item, those whose sizes are in it included."""
    kind = type(item)
    if kind is Result or kind is Parameter or kind is Image or kind is Constant:
        found.append(item)
    elif isinstance(item, (tuple, list)):
        for each in item:
            _find_values(each, found)
    elif isinstance(item, dict):
        _find_values(list(item.values()), found)
    elif kind is slice:
        _find_values((item.start, item.stop, item.step), found)
    elif kind is Dim:
        _find_values(item.term, found)
    elif kind is Made:
        _find_values(item.operands, found)
    elif kind is Size or kind is Of:
        found.append(item.value)


def written_by_hand(base: Recording, training: Recording) -> list[str]:
    """Sentences on the parameters and buffers that the network's own code changes in training alone."""
    return [
        f"{path} is changed by hand in training, at {at_line(place)}: the top-down network leaves it as it is; a norm"
        " of torch's keeps its own statistics."
        for path, place in training.writes.items()
        if path not in base.writes
    ]


def training_steps(
    base: Recording,
    training: Recording,
    pairs: dict[Call, Call],
    builder: Callable[[], Builder],
    taken: set[str],
) -> tuple[dict[str, nn.Module], list[str]]:
    """Put a step into the evaluation's run wherever training hands another value on.

    Args:
        pairs: see :func:`aligned`.
        builder: makes a builder for the graph of a step.
        taken: the paths that modules of the network have.

    Returns:
        The new modules by path, and sentences for the report on what could not be kept.
    """
    return _Steps(base, training, pairs, builder, taken).find()


class _Steps:
    def __init__(
        self,
        base: Recording,
        training: Recording,
        pairs: dict[Call, Call],
        builder: Callable[[], Builder],
        taken: set[str],
    ) -> None:
        self.base, self.training, self.pairs, self.builder, self.taken = base, training, pairs, builder, set(taken)
        self.own = {twin: call for call, twin in pairs.items()}
        self.modules: dict[str, nn.Module] = {}
        self.notes: list[str] = []
        self._made: dict[tuple[Any, Any], Result] = {}
        self._insert: list[tuple[Call | None, Call]] = []  # before which call; None: at the end

    def find(self) -> tuple[dict[str, nn.Module], list[str]]:
        for call in self.base.calls:
            twin = self.pairs.get(call)
            if twin is not None:
                call.args = self._held(call.args, twin.args, call)
                call.kwargs = self._held(call.kwargs, twin.kwargs, call)
        others = dict(self.training.outputs)
        outputs = []
        for name, value in self.base.outputs:
            other = others.get(name, self.training.outputs[0][1] if self.training.outputs else value)
            outputs.append((name, self._held(value, other, None)))
        self.base.outputs = outputs
        for before, step in self._insert:
            at = self.base.calls.index(before) if before is not None else len(self.base.calls)
            self.base.calls.insert(at, step)
        return self.modules, self.notes

    def _held(self, given: Any, other: Any, call: Call | None) -> Any:
        """An argument in evaluation, or the step that gives what it is in training."""
        if isinstance(given, Result | Image) and isinstance(other, Result | Image | Constant | Parameter):
            mine = self._mine(other)
            same = mine == given or (isinstance(mine, Image) and isinstance(given, Image))
            return given if same else self._step(given, other, call)
        if isinstance(given, (tuple, list)) and isinstance(other, (tuple, list)) and len(given) == len(other):
            made = [self._held(a, b, call) for a, b in zip(given, other, strict=True)]
            return made if isinstance(given, list) else tuple(made)
        if isinstance(given, dict) and isinstance(other, dict) and given.keys() == other.keys():
            return {key: self._held(value, other[key], call) for key, value in given.items()}
        return given

    def _mine(self, value: Value) -> Value | None:
        """The same value in the run in evaluation; None for one that training alone computes."""
        if not isinstance(value, Result):
            return value
        own = self.own.get(value.call)
        return Result(own, value.at) if own is not None else None

    def _step(self, given: Result | Image, other: Value, call: Call | None) -> Value:
        key = (given, other)
        if key in self._made:
            return self._made[key]
        cone = self._cone(other)
        layers = [each for each in cone if each.module is not None and any(True for _ in each.module.parameters())]
        where = call or (given.call if isinstance(given, Result) else None)
        if layers or any(isinstance(value, Parameter) for value in _read(cone)):
            what = f"{layers[0].target!r} runs" if layers else "other operations on parameters run"
            place = at_line((layers or cone)[0].place)
            self.notes.append(f"In training alone {what}, at {place}: left out, the network trains as it evaluates.")
            return given
        shapes = [_shape(value) for value in (given, other)]
        if isinstance(other, Result) and shapes[0] != shapes[1] and isinstance(given, Result):
            self.notes.append(
                f"In training the network hands on {shapes[1]} in place of {shapes[0]},"
                f" at {at_line(other.call.place)}: left out, it trains as it evaluates."
            )
            return given
        module, inputs = self._module(given, other, cone)
        stack = where.stack if where is not None else ()
        home = stack[-1][0] if stack else ""
        path = f"{home}.in_training" if home else "in_training"
        count = 1
        while path in self.taken:
            count += 1
            path = f"{home}.in_training{count}" if home else f"in_training{count}"
        self.taken.add(path)
        self.modules[path] = module
        output = tensor_of(given) if isinstance(given, Result) else None
        begins = cone[0].place if cone else (where.place if where else ("", 0))
        step = Call("call_module", path, (given, *inputs), {}, output, stack, begins, module)
        self._insert.append((call, step))
        self._made[key] = Result(step)
        return self._made[key]

    def _cone(self, value: Value) -> list[Call]:
        """The calls of training alone that a value comes from, in order."""
        found: set[Call] = set()
        stack = [value]
        while stack:
            each = stack.pop()
            if isinstance(each, Result) and each.call not in self.own and each.call not in found:
                found.add(each.call)
                stack.extend(_read([each.call]))
        return [call for call in self.training.calls if call in found]

    def _module(self, given: Value, value: Value, cone: list[Call]) -> tuple[TrainingStep, list[Value]]:
        """A step that computes a value of training in place of one of evaluation; what it reads beside that one."""
        builder = self.builder()
        evaluated = builder.graph.placeholder("x")
        inside = set(cone)
        inputs: list[Value] = []

        def take(each: Value) -> None:
            is_inner = isinstance(each, Result) and each.call in inside
            if is_inner or isinstance(each, Constant) or each in builder.nodes:
                return
            mine = self._mine(each)
            assert mine is not None, "what training alone computes is in the cone"
            is_given = mine == given or (isinstance(mine, Image) and isinstance(given, Image))
            node = evaluated if is_given else builder.graph.placeholder(f"y{len(inputs)}")
            facts(node).value = tensor_of(each) if isinstance(each, Result) else None
            builder.nodes["image" if isinstance(each, Image) else each] = node
            if not is_given:
                inputs.append(mine)

        for each in [*_read(cone), *([] if cone else [value])]:
            take(each)
        for size in _sizes(cone):
            take(size)
        for call in cone:
            builder.write(call)
        builder.graph.output(builder.node(value))
        for node in reversed(builder.graph.nodes):
            if node.op.startswith("call_") and not node.users:
                builder.graph.erase_node(node)
        for node in builder.graph.find_nodes(op="get_attr"):
            node.target = str(node.target).replace(".", "_")
        inner = {call.target: call.module for call in cone if call.op == "call_module"}
        own = {path: f"{path.rpartition('.')[2]}{i or ''}" for i, path in enumerate(inner)}
        for node in builder.graph.find_nodes(op="call_module"):
            node.target = own[str(node.target)]
        module = TrainingStep(builder.graph)
        for path, layer in inner.items():  # without parameters: an autograd function, a dropout
            module.add_module(own[path], layer)
        for name, tensor in builder.constants.items():
            module.register_buffer(name.replace(".", "_"), tensor)
        return module, inputs


def _read(calls: list[Call]) -> list[Value]:
    return [value for call in calls for value in values_in((call.args, call.kwargs))]


def _sizes(cone: list[Call]) -> list[Value]:
    """The values whose sizes calls are given as numbers."""
    found: list[Value] = []

    def look(item: Any) -> None:
        if isinstance(item, Dim):
            look(item.term)
        elif isinstance(item, Size):
            found.append(item.value)
        elif isinstance(item, Made):
            look(item.operands)
        elif isinstance(item, (tuple, list)):
            for each in item:
                look(each)
        elif isinstance(item, dict):
            look(tuple(item.values()))

    for call in cone:
        look((call.args, call.kwargs))
    return found


def _shape(value: Value) -> tuple[int, ...] | None:
    made = tensor_of(value) if isinstance(value, Result) else None
    return tuple(made.shape) if isinstance(made, torch.Tensor) else None
