"""Round trip: the parts that a conversion cut out, put together again, are the bottom-up network (SPEC 9.1).

The passes that read a network leave units, in top-down stages or between them, and a head. Chained in bottom-up order,
with the source's own layers and strides, they must compute what the source computes: else an operation was lost, baked
in, put elsewhere or given another layer on the way.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode

from td_compiler.capture.capture import capture
from td_compiler.capture.skeleton import unwrap_parts
from td_compiler.graph.notes import facts, origin_of
from td_compiler.graph.states import TopDown
from td_compiler.graph.units import TopDownStage, Unit
from td_compiler.graph.walks import ancestors, arguments
from td_compiler.passes import cut, read
from td_compiler.surroundings import own_draws
from td_compiler.verification.checks import Skipped, Violation
from td_compiler.verification.subject import Size, Subject

__all__ = ["BottomUpAgain", "bottom_up_again", "compare", "round_trip"]

_TOLERANCE = 1e-4  # of the largest value: the same operations on the same numbers differ by less, by far
_SEED = 0
_WIDER = 16  # pixels that the second image size is wider than the first


class BottomUpAgain(nn.Module):
    """The bottom-up network, made of the parts that a conversion cut out of it.

    Attributes:
        source: the network whose layers and parameters it runs.
        graph: its operations: one placeholder, the images (N, C, H, W), one output.
        constants: tensors that it reads beside the source's parameters and buffers, by path.
        called: the names of the layers' buffers that a run may change.
        unread: the paths of the source's modules that no operation comes from, such as auxiliary classifiers.
    """

    def __init__(
        self,
        source: nn.Module,
        graph: fx.Graph,
        layers: dict[fx.Node, nn.Module],
        constants: dict[str, torch.Tensor],
        read: Collection[str],
    ) -> None:
        super().__init__()
        self.constants = constants
        self.unread = tuple(path for path, _ in source.named_modules() if path and path not in read)
        self.source = source
        self.graph = graph
        self._layers = layers
        called = set(itertools.chain.from_iterable(layer.buffers() for layer in layers.values()))
        # Of floating numbers: a function that was read as a layer counts its batches, which changes nothing.
        floating = (named for named in source.named_buffers() if named[1].is_floating_point())
        self.called = frozenset(name for name, buffer in floating if buffer in called)
        known = set(source.modules())
        self.made = nn.ModuleList(dict.fromkeys(layer for layer in layers.values() if layer not in known))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the source returns for images (N, C, H, W)."""
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                values[node] = images
            elif node.op == "output":
                result: torch.Tensor = args[0]
                return result
            elif node.op == "get_attr":
                path = str(node.target)
                values[node] = self.training if path == "training" else self._attribute(path, images)
            elif node.op == "call_module":
                values[node] = self._layers[node](*args, **kwargs)
            elif node.op == "call_method":
                values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                values[node] = node.target(*args, **kwargs)
        raise AssertionError("a graph without output")

    def _attribute(self, path: str, images: torch.Tensor) -> Any:
        if path in self.constants:  # a tensor that the network makes, or keeps beside its parameters and buffers
            return self.constants[path].to(images.device)
        return reduce(getattr, path.split("."), self.source)


def bottom_up_again(top_down: TopDown) -> BottomUpAgain:
    """The parts of a conversion in bottom-up order: what is done to the image, the units, the head.

    A unit that stands in a top-down stage is read from there. The network has a copy of the model's layers.

    Args:
        top_down: a network as :func:`td_compiler.passes.cut` leaves it.

    Raises:
        Violation: if a part is missing, or stands in two places, or an operation changed.
        Skipped: if the model does not copy, or a layer of the graph is none of the model's.
    """
    source = _copied(top_down.bottom_up.model)
    parts = _Parts(top_down)
    parts.check()
    layers = _Layers(top_down, source)
    graph = parts.chain()
    called = {node: layers.of(node) for node in graph.find_nodes(op="call_module")}
    read = {path for node in parts.main() for path, _ in facts(node).modules}
    read |= {str(node.target) for node in called}
    return BottomUpAgain(source, graph, called, top_down.bottom_up.captured.constants, read)


@dataclass
class _Part:
    """Some operations in order, and where what they read from outside comes from.

    Attributes:
        nodes: as they stand in the bottom-up graph or, copied, in a stage's.
        inputs: a node that they read, of another part -> the bottom-up nodes that it stands for: several where a cell
            of the coarsest stage reads one map in the place of two (SPEC 2.13).
    """

    nodes: list[fx.Node]
    inputs: dict[fx.Node, tuple[fx.Node, ...]]


class _Parts:
    """What a conversion cut a network into."""

    def __init__(self, top_down: TopDown) -> None:
        self._top_down = top_down
        self._homes: dict[Unit, TopDownStage] = {}
        for stage in top_down.stages:
            for unit in stage.units:
                if unit in self._homes:
                    raise Violation(
                        f"{_place(unit.output)} stands in the stages {self._homes[unit].key} and {stage.key}"
                    )
                self._homes[unit] = stage
        head = top_down.bottom_up.head
        units = top_down.bottom_up.units
        start = units[0].input
        prologue = [node for node in self.main() if node is start or node in ancestors(start)]
        self.parts = [_Part(prologue, {}), *map(self._of_unit, units), _Part(head, {})]

    def main(self) -> list[fx.Node]:
        """The bottom-up nodes that carry the image's data to the output, in order; the image itself left out."""
        captured = self._top_down.bottom_up.captured
        needed = {captured.output, *ancestors(captured.output)}
        return [n for n in captured.graph.nodes if n in needed and facts(n).carries and n is not captured.image]

    def _of_unit(self, unit: Unit) -> _Part:
        stage = self._homes.get(unit)
        if stage is None:
            return _Part(unit.nodes, {})
        inputs: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for given, own in zip(stage.inputs[unit], unit.inputs, strict=True):
            inputs[given] = (*inputs.get(given, ()), own)
        return _Part(stage.spans[unit], inputs)

    def check(self) -> None:
        """Every operation that carries the image's data stands in one part, once, in its order."""
        found = [origin_of(node) for part in self.parts for node in part.nodes]
        expected = self.main()
        lost = [node for node in expected if node not in set(found)]
        if lost:
            raise Violation(f"{_place(lost[0])} is in no part of the network")
        twice = [node for i, node in enumerate(found) if node in found[:i]]
        if twice:
            raise Violation(f"{_place(twice[0])} is in two parts of the network")

    def chain(self) -> fx.Graph:
        """A graph of all parts, one after the other."""
        captured, graph = self._top_down.bottom_up.captured, fx.Graph()
        made: dict[fx.Node, fx.Node] = {captured.image: graph.placeholder("images")}  # bottom-up node -> new node
        for part in self.parts:
            for node in part.nodes:
                self._copy(graph, made, part, node)
        graph.output(made[captured.output])
        return graph

    def _copy(
        self,
        graph: fx.Graph,
        made: dict[fx.Node, fx.Node],
        part: _Part,
        node: fx.Node,
        wanted: fx.Node | None = None,
    ) -> fx.Node:
        """Copy a node and, where no part holds them, the sizes and parameters that it reads.

        `wanted` is what stands in its place in the bottom-up graph, for a node that stands for several.
        """
        stands_for = part.inputs.get(node, (origin_of(node),))
        origin = wanted if wanted in stands_for else stands_for[0]
        assert origin is not None
        if origin not in made:
            if facts(origin).carries and node not in part.nodes:
                raise Violation(f"a part reads {_place(origin)}, which none before it computes")
            places = iter(arguments(origin))
            read = (node.args, node.kwargs)
            args, kwargs = map_arg(read, lambda n: self._copy(graph, made, part, n, next(places, None)))
            target = origin.target if origin.op in {"call_module", "get_attr"} else node.target  # the source's paths
            made[origin] = graph.create_node(node.op, target, args, kwargs)
        return made[origin]


class _Layers:
    """Which layer of a copy of the model a node of the graph calls."""

    def __init__(self, top_down: TopDown, source: nn.Module) -> None:
        self._captured = top_down.bottom_up.captured
        self._source = dict(source.named_modules(remove_duplicate=False))
        root = top_down.bottom_up.captured.modules[""]
        tensors = dict(itertools.chain(source.named_parameters(remove_duplicate=False), _buffers(source)))
        named = itertools.chain(root.named_parameters(remove_duplicate=False), _buffers(root))
        self._values = {id(tensor): tensors[name] for name, tensor in named if name in tensors}
        self._made: dict[nn.Module, nn.Module] = {}

    def of(self, node: fx.Node) -> nn.Module:
        """The source's layer, or, where a function was read as a layer, that layer with the source's parameters."""
        read = self._captured.module(node)
        own = self._source.get(str(node.target))
        assert read is not None
        if own is not None and type(own) is type(read):
            return own
        if read not in self._made:
            self._made[read] = copy.deepcopy(read, self._known(read))
        return self._made[read]

    def _known(self, layer: nn.Module) -> dict[int, Any]:
        held = [*layer.parameters(), *layer.buffers()]
        strange = [tensor for tensor in held if id(tensor) not in self._values]
        if strange:
            raise Skipped(f"the source has no parameter for {type(layer).__name__}")
        return {id(tensor): self._values[id(tensor)] for tensor in held}


def compare(source: nn.Module, again: BottomUpAgain, images: torch.Tensor, *, training: bool) -> None:
    """Run both on images (N, C, H, W), forward and backward, with the same random numbers.

    Args:
        source: the bottom-up network; its gradients and mode change: give a copy.
        again: the same, made of its parts.
        images: on the networks' device.
        training: whether in training mode.

    Raises:
        Violation: if outputs, gradients or buffers differ.
        Skipped: if the source does not run on such images.
    """
    mode = "training" if training else "evaluation"
    what = f"for {images.shape[0]} images of {images.shape[2]}x{images.shape[3]} in {mode}"
    with _drawing_apart(source, again.unread):
        try:
            expected = _Run(source, source, images, training)
        except Exception as error:
            raise Skipped(f"the source does not run {what} ({type(error).__name__}: {error})") from error
        try:
            found = _Run(again, again.source, images, training)
        except Exception as error:
            raise Violation(f"put together again it fails {what}: {type(error).__name__}: {error}") from error
        different = _difference(found, expected, again.called)
        if not different:
            return
        if _difference(_Run(source, source, images, training), expected, again.called):
            raise Skipped("the source computes something else every time")
        if _differs_by_rounding(source, again, images, training):
            return
        raise Violation(f"{different} {what}")


@contextlib.contextmanager
def _drawing_apart(source: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Modules draw random numbers of their own, so that those of the others are the same as if they did not run."""
    with contextlib.ExitStack() as hooks:
        for module in map(source.get_submodule, paths):
            draws = own_draws()
            before, after = partial(_enter, draws), partial(_leave, draws)
            hooks.callback(module.register_forward_pre_hook(before).remove)
            hooks.callback(module.register_forward_hook(after, always_call=True).remove)
        yield


def _enter(draws: TorchFunctionMode, *_: object) -> None:
    draws.__enter__()


def _leave(draws: TorchFunctionMode, *_: object) -> None:
    draws.__exit__(None, None, None)


def _differs_by_rounding(source: nn.Module, again: BottomUpAgain, images: torch.Tensor, training: bool) -> bool:
    """Whether two networks of single precision that differ do not in double: norms of small maps magnify rounding."""
    if {t.dtype for t in (*source.parameters(), *source.buffers()) if t.is_floating_point()} != {torch.float32}:
        return False
    try:
        again.double(), source.double()
        found = _Run(again, again.source, images.double(), training)
        expected = _Run(source, source, images.double(), training)
    except Exception:  # something in them wants single precision
        return False
    finally:
        again.float(), source.float()  # the same values as before, bit by bit
    return not _difference(found, expected, again.called)


class _Run:
    """What a network computed; its buffers are afterwards what they were.

    Attributes:
        output: the first tensor that it returned.
        gradients: of every parameter by name, zero where there is none.
        buffers: by name, after the forward: in the backward, checkpointed layers count their batch a second time.
    """

    def __init__(self, network: nn.Module, source: nn.Module, images: torch.Tensor, training: bool) -> None:
        network.train(training)
        before = {name: buffer.clone() for name, buffer in source.named_buffers()}
        source.zero_grad(set_to_none=True)
        try:
            self.output = self._forward_and_back(network, source, images)
            self.gradients = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in source.named_parameters()
            }
        finally:
            with torch.no_grad():
                for name, buffer in source.named_buffers():
                    if name in before and buffer.shape == before[name].shape:
                        buffer.copy_(before[name])

    def _forward_and_back(self, network: nn.Module, source: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), torch.enable_grad():
            torch.manual_seed(_SEED)
            with own_draws():  # of the generator just seeded: those of `verify` go on from run to run
                output = next(_tensors(network(images.clone())))
            self.buffers = {name: buffer.clone() for name, buffer in source.named_buffers()}
            if output.requires_grad:
                weights = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=output.dtype)
                (output.flatten() * weights).sum().backward()
        return output.detach().clone()


def _difference(found: _Run, expected: _Run, buffers: Collection[str]) -> str:
    """The first thing in which one run differs from another, in words; "" if there is none.

    Args:
        found: one run.
        expected: another.
        buffers: the names of those that count.
    """
    if found.output.shape != expected.output.shape:
        return f"the output is {tuple(found.output.shape)}, not {tuple(expected.output.shape)},"
    steepest, largest = _largest(expected.gradients.values()), _largest(expected.buffers[name] for name in buffers)
    compared = [("the output", found.output, expected.output, 0.0)]
    for name, gradient in expected.gradients.items():  # one that should be zero, in front of a norm, is all rounding
        compared.append((f"the gradient of {name}", found.gradients[name], gradient, steepest / 1000))
    for name in buffers:  # the mean of what a norm has just centred is all rounding, too
        compared.append((f"the buffer {name}", found.buffers[name], expected.buffers[name], largest / 1000))
    return next(
        (f"{name} is {off}" for name, value, should, scale in compared if (off := _off(value, should, scale))), ""
    )


def _largest(tensors: Iterable[torch.Tensor]) -> float:
    """The largest finite absolute value in tensors, 0 if there is none."""
    return max((t.detach().nan_to_num(0, 0, 0).abs().max().item() for t in tensors if t.numel()), default=0.0)


def _off(found: torch.Tensor, expected: torch.Tensor, scale: float) -> str:
    """How far a tensor is from another one, in words; "" if it is not. `scale` is the least that counts as large."""
    if torch.equal(found, expected):
        return ""
    found, expected = found.double(), expected.double()
    if not torch.equal(found.isfinite(), expected.isfinite()):
        return "not finite in the same places"
    found, expected = (tensor.nan_to_num(0, 0, 0) for tensor in (found, expected))
    off = ((found - expected).abs().max() / expected.abs().max().clamp(min=max(scale, 1e-12))).item()
    return f"off by {off:.1e} of the largest value" if off > _TOLERANCE else ""


def round_trip(subject: Subject) -> str:
    """Put together again, the parts compute what the source does: outputs, gradients, statistics (SPEC 9.1)."""
    if subject.on_meta:
        raise Skipped("there are no values on the meta device")
    size = subject.own_size
    again = bottom_up_again(cut(read(subject.model, size), subject.options))
    source = _copied(subject.model)
    seen: dict[str, list[str]] = {}
    reasons: list[str] = []
    for batch, side in ((2, subject.small), (3, _other_size(subject)), (2, size)):
        if side == size and seen:  # its own size tells where the others cannot
            continue
        images = subject.images(side)
        images = torch.cat([images, images.flip(3)])[:batch]
        for training in (False, True):
            try:
                compare(source, again, images, training=training)
                seen.setdefault("x".join(map(str, images.shape)), []).append("training" if training else "evaluation")
            except Skipped as reason:
                reasons.append(str(reason))
            except Violation:
                if _is_alike(subject.model, size, side):
                    raise
                shape = "x".join(map(str, side))
                reasons.append(f"for images of {shape} the source itself runs with other numbers than for {size}")
    if not seen:
        raise Skipped(reasons[0])
    return "outputs and gradients for " + " and ".join(f"{size} in {' and '.join(seen[size])}" for size in seen)


def _is_alike(model: nn.Module, size: Size, other: Size) -> bool:
    """Whether a network does the same for images of two sizes: not if it pads by what is left over, for instance."""
    graphs = [capture(model, each).graph for each in (size, other)]
    steps = [[(node.op, node.target, _literals(node.args), _literals(node.kwargs)) for node in g.nodes] for g in graphs]
    return steps[0] == steps[1]


def _literals(item: Any) -> Any:
    return map_arg(item, lambda node: None)


def _other_size(subject: Subject) -> Size:
    """A size that is not the smallest known, where the source takes any; else that."""
    channels, height, width = subject.small
    other = channels, height, width + _WIDER
    return other if len(subject.sizes) > 1 and subject.takes(other) else subject.small


def _place(node: fx.Node) -> str:
    stack = [path for path, _ in facts(node).modules if path]
    return f"{node.name!r} in {stack[-1]!r}" if stack else repr(node.name)


def _buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return module.named_buffers(remove_duplicate=False)


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy, with nothing of `torch.compile` around a part.

    Of a weight that a hook computes anew, as that of the old `weight_norm`, it has the last value.

    Raises:
        Skipped: if there is none.
    """
    held = (value for module in model.modules() for value in vars(module).values())
    computed = {id(v): v.detach().clone() for v in held if isinstance(v, torch.Tensor) and not v.is_leaf}
    try:
        copied = copy.deepcopy(model, computed)
    except Exception as error:
        raise Skipped(f"the network does not copy ({type(error).__name__}: {error})") from error
    unwrap_parts(copied)
    return copied


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in what a network returns: itself, or those of a tuple, list, mapping or object."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        yield from itertools.chain.from_iterable(map(_tensors, value))
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "__dict__"):
        yield from _tensors(list(vars(value).values()))
