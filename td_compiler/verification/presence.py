"""Which layers of a source are there in its top-down network, which are gone, and which follow what comes in."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from td_compiler.capture.capture import capture
from td_compiler.capture.meta import META, ShapesOnly
from td_compiler.capture.skeleton import skeleton
from td_compiler.graph.notes import computed
from td_compiler.graph.operators import Kind, layer_row, lookup
from td_compiler.network.base import TopDownNet
from td_compiler.verification.settings import common_layers, is_depthwise, layers_of, named_layers, source_names
from td_compiler.verification.subject import Subject, tensors_in

__all__ = ["Presence", "changed_filters", "presence"]


@dataclass(frozen=True)
class Presence:
    """Where the layers of a source are that ran and compute something of their own.

    Attributes:
        lost: gone, and should not be.
        stem: gone from the front: the stem's, which live on in the entries (SPEC 2.2).
        projections: gone with a shortcut that has none any more (SPEC 2.4).
        poolings: of the user's own, with numbers of their own; upsampling stands in their place (SPEC 2.9).
        kept: how many are there.
    """

    lost: tuple[str, ...]
    stem: tuple[str, ...]
    projections: tuple[str, ...]
    poolings: tuple[str, ...]
    kept: int


def presence(subject: Subject) -> Presence:
    """Find the layers of a source, those with parameters and random ones, in its top-down network.

    Where the source's classifier gave way to one of pixels, those after the last one that is kept may be gone.
    """
    model, td, head = subject.model, subject.td, subject.options.task == "classification"
    ran, pools = _run_order(subject)
    name = source_names(model)
    there = {name(path) for path, _ in td.named_modules(remove_duplicate=False)}
    names = _names(model)
    kept = [any(alias in there for alias in names[id(model.get_submodule(path))]) for path in ran]
    first = kept.index(True) if True in kept else len(kept)
    last = len(kept) if head else max((i + 1 for i, is_kept in enumerate(kept) if is_kept), default=0)
    order = list(ran)
    gone = [path for path, is_kept in zip(order[first:last], kept[first:last], strict=True) if not is_kept]
    projections = _dropped_shortcuts(subject, set(gone), set(order)) if gone else set()
    lost = [path for path in gone if path not in projections and path not in pools]
    # layers that drop by a function are there as that function
    drops = sum("drop" in str(n.target) or "stochastic" in str(n.target) for n in _operations(td))
    for path in [path for path in lost if not any(True for _ in ran[path].parameters())][:drops]:
        lost.remove(path)
    if random := [path for path in lost if not any(True for _ in ran[path].parameters())]:
        unread = _unread(subject, random)
        lost = [path for path in lost if path not in unread]
    gone_projections, gone_pools = (tuple(p for p in gone if p in paths) for paths in (projections, pools))
    return Presence(tuple(lost), tuple(order[:first]), gone_projections, gone_pools, sum(kept))


def _names(model: nn.Module) -> dict[int, list[str]]:
    """All paths of every module, by its `id`: a layer that is used in two places may have two."""
    names: dict[int, list[str]] = {}
    for path, module in named_layers(model):
        names.setdefault(id(module), []).append(path)
    return names


def _operations(td: TopDownNet) -> Iterator[fx.Node]:
    """The functions and methods that a top-down network calls."""
    nodes = (node for part in td.parts for node in part.graph.nodes)
    return (node for node in nodes if node.op in ("call_function", "call_method"))


def _drop_rate(module: nn.Module) -> float:
    """The share of values that a layer drops at random in training, 0 if it drops none."""
    rates = (getattr(module, name, None) for name in ("p", "drop_prob"))
    return next((float(rate) for rate in rates if isinstance(rate, (int, float)) and 0 < rate < 1), 0.0)


def _run_order(subject: Subject) -> tuple[dict[str, nn.Module], set[str]]:
    """The layers that count, in the order in which they run, each under its first name; and which of them only pool."""
    ran: dict[str, nn.Module] = {}
    pools: set[str] = set()

    def watch(network: nn.Module) -> nn.Module:
        ran.clear()
        pools.clear()
        seen: set[nn.Module] = set()
        for path, module in layers_of(network).items():
            if module not in seen and (_drop_rate(module) > 0 or any(True for _ in module.parameters())):
                seen.add(module)
                module.register_forward_hook(partial(_note, ran, pools, path))
        return network

    subject.run_source(watch, subject.sizes[0])
    return ran, pools


def _note(ran: dict[str, nn.Module], pools: set[str], path: str, module: nn.Module, given: Any, made: Any) -> None:
    ran.setdefault(path, module)
    before, after = (next(tensors_in(each), None) for each in (given, made))
    numbers = all(p.numel() in (1, *p.shape) for p in module.parameters())  # none that mix channels or pixels
    if before is None or after is None or before.dim() != after.dim() or not numbers or layer_row(module) is not None:
        return
    if before.shape[:2] == after.shape[:2] and before.shape[2:].numel() > after.shape[2:].numel() > 1:
        pools.add(path)


def _unread(subject: Subject, paths: list[str]) -> set[str]:
    """Those of some layers that compute what nothing reads, seen by the gradients' graph in training mode."""
    network = skeleton(subject.model).train()
    made: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    for path in paths:
        network.get_submodule(path).register_forward_hook(partial(_note_output, made[path]))
    try:
        with ShapesOnly(), torch.enable_grad():
            scores = network(subject.images(subject.sizes[0], META))
    except Exception:  # it needs values: then nobody can tell
        return set()
    reached: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors_in(scores)]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in reached:
            reached.add(step)
            waiting += [before for before, _ in step.next_functions]
    known = {path for path in paths if made[path] and all(tensor.grad_fn is not None for tensor in made[path])}
    return {path for path in known if reached.isdisjoint(tensor.grad_fn for tensor in made[path])}


def _note_output(made: list[torch.Tensor], _: nn.Module, __: Any, output: Any) -> None:
    made += tensors_in(output)


def _dropped_shortcuts(subject: Subject, gone: set[str], ran: set[str]) -> set[str]:
    """The layers of shortcuts that are gone as a whole: one of several ways into a sum, and not the longest."""
    graph = capture(subject.model, subject.sizes[0]).graph
    found: set[str] = set()
    for join in graph.nodes:
        ways = [_way(node, join) & ran for node in join.all_input_nodes if isinstance(_value(node), torch.Tensor)]
        longest = max(map(len, ways), default=0)
        for layers in ways:
            if layers and layers <= gone and len(layers) < longest:
                found |= layers
    return found


def _way(source: fx.Node, join: fx.Node) -> set[str]:
    """The layers that matter for one input of a node alone: from where its way parts with the others' on.

    A layer is there too where its forward computes a weight of its own, so that its parameters are read.
    """
    if _readers(source) != {join}:
        return set()
    inside = {source}
    for node in reversed(source.graph.nodes):  # so that all readers of a node come before it
        readers = _readers(node)
        if node.op != "placeholder" and readers and readers <= inside:
            inside.add(node)
    called = {str(node.target) for node in inside if node.op == "call_module"}
    return called | {str(node.target).rpartition(".")[0] for node in inside if node.op == "get_attr"}


def _readers(node: fx.Node) -> set[fx.Node]:
    """What reads a node's values, not its size alone: whole, as a `torch.Size`, or a number of it."""
    return {user for user in node.users if not isinstance(_value(user), (int, torch.Size))}


def _value(node: fx.Node) -> Any:
    return computed(node)


def changed_filters(subject: Subject) -> tuple[int, list[str]]:
    """How many convolutions choose their filters, and in words those that have others than in the source.

    A depthwise convolution follows its input, and so does one whose output is added to what it reads; one that gates a
    map, or reads a single pixel, follows what it gates.
    """
    sizes: dict[str, torch.Size] = {}

    def watch(network: nn.Module) -> nn.Module:
        for path, module in layers_of(network).items():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(partial(_note_size, sizes, path))
        return network

    subject.run_source(watch, subject.sizes[0])
    td = subject.td
    followers = {path for part in td.parts for path in _followers(td, part.graph)}
    compared = [
        (path, before.out_channels, after.out_channels)
        for path, before, after in common_layers(subject.model, td)
        if isinstance(before, nn.Conv2d) and isinstance(after, nn.Conv2d)
        if not is_depthwise(before) and sizes.get(path) != (1, 1) and path not in followers
    ]
    wanted, scores = subject.options.num_classes, subject.source_shape(subject.sizes[0])
    compared = [row for row in compared if wanted is None or row[1:] != (scores[1], wanted)]  # of the classifier
    return len(compared), [f"{path} ({old} to {new})" for path, old, new in compared if old != new]


def _note_size(sizes: dict[str, torch.Size], path: str, _: nn.Module, inputs: Any, __: Any) -> None:
    if inputs and isinstance(inputs[0], torch.Tensor):
        sizes[path] = inputs[0].shape[2:]


def _followers(td: TopDownNet, graph: fx.Graph) -> Iterator[str]:
    """The layers whose output is multiplied with another map, or added to what they read, and used by nothing else.

    Functions of the output may be on the way.
    """
    for node in graph.find_nodes(op="call_module"):
        own, waiting, follows = {node}, list(node.users), bool(node.users)
        read = _width_givers(td, node.all_input_nodes)
        while waiting and follows:
            user = waiting.pop()
            others = [each for each in _maps(user) if each not in own]
            if not others and not _sets_width(td, user):
                own.add(user)
                waiting += user.users
            else:
                is_sum = user.target in _SUMS and all(_width_givers(td, [each]) & read for each in others)
                follows = bool(others) and (_is_product(user) or is_sum)
        if follows:
            yield str(node.target)


def _width_givers(td: TopDownNet, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Nodes and those that their maps come from, up to and with the first that may set another width."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        each = waiting.pop()
        found.add(each)
        if len(_maps(each)) == 1 and not _sets_width(td, each):
            waiting += _maps(each)
    return found


def _maps(node: fx.Node) -> list[fx.Node]:
    """The nodes that give an operation its channels: not the map whose size an upsampling takes over."""
    row = lookup(node, None)
    return node.all_input_nodes[: 1 if row is not None and row.kind is Kind.UPSAMPLE else None]


def _sets_width(td: TopDownNet, node: fx.Node) -> bool:
    layer = td.get_submodule(str(node.target)) if node.op == "call_module" else None
    return node.op == "output" or isinstance(layer, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d))


_SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}


def _is_product(node: fx.Node) -> bool:
    return node.target in {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"}
