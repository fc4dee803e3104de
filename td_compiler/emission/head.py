"""The network's head and its classifier: scores from the last map, what the classifier reads, another classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import fx, nn

from td_compiler.emission.arguments import CLASSES, DROP_PATH, Arguments
from td_compiler.emission.body import write_body
from td_compiler.emission.carry import Carrier
from td_compiler.emission.classes import Declaration
from td_compiler.emission.graph_steps import read_steps
from td_compiler.emission.initial_values import InitFunction
from td_compiler.emission.layout import WIDTH, Doc, Join, Statement, call, flat, literal
from td_compiler.emission.text import TENSOR, method
from td_compiler.emission.tree import Tree, own_children
from td_compiler.emission.units import Unit
from td_compiler.graph.initialisation import kind_of
from td_compiler.network.segments import handed_on

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet

__all__ = ["assignment", "classifier_methods", "head_method", "number_statements", "splits_head", "with_classifier"]

_INT, _BOOL = "int", "bool = False"


def splits_head(unit: Unit, arguments: Arguments) -> bool:
    """Whether a unit holds the classifier behind something else, so that no one could stop in front of it."""
    return arguments.classifier in unit.nodes[1:]


def number_statements(td: TopDownNet, arguments: Arguments) -> list[Statement]:
    """What `__init__` keeps: the classes, the filters of the last map, and those that the classifier reads."""
    reads = _reads(td, arguments)
    width = td.report.stages[0].top_down.width if td.report.stages else reads
    classes = CLASSES if CLASSES in arguments.values else literal(_scores(td))
    widths = (
        [Statement("self.num_features = self.head_hidden_size = ", literal(width))]
        if reads in (0, width)
        else [Statement("self.num_features = ", literal(width)), Statement("self.head_hidden_size = ", literal(reads))]
    )
    rates = f"[{DROP_PATH} * i / {arguments.steps} for i in range({arguments.steps + 1})]"
    growing = [Statement("rates = ", rates)] if arguments.steps > 1 else []
    return [Statement(f"self.{CLASSES} = ", classes), *widths, *growing]


def _reads(td: TopDownNet, arguments: Arguments) -> int:
    """How many numbers the classifier reads; 0 if there is none."""
    if arguments.classifier is None:
        return 0
    layer = td.get_submodule(str(arguments.classifier.target))
    number: int = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # type: ignore[assignment]
    return number


def _scores(td: TopDownNet) -> int:
    """How many numbers the head puts out; 0 where these are features: it has no weights, or lost its classifier."""
    if td.report.options is not None and td.report.options.num_classes == 0:
        return 0
    calls = (str(node.target) for node in td.segments[-1].graph.nodes if node.op == "call_module")
    has_weights = any(True for path in calls for _ in td.get_submodule(path).parameters())
    return td.report.stages[-1].top_down.width if has_weights and td.report.stages else 0


def with_classifier(declarations: Sequence[Declaration], layers: Mapping[str, Doc]) -> list[Declaration]:
    """The lines of `__init__` in which `reset_classifier` makes the classifier, or takes it out again for no classes.

    `layers` are the layers that the number of classes is a number of, by path.
    """
    names = {path.partition(".")[0] for path in layers}
    if not names:
        return list(declarations)
    if len(layers) == 1 and names == layers.keys():
        return [
            replace(line, kind="call", doc=call("self.reset_classifier", CLASSES)) if line.name in names else line
            for line in declarations
        ]
    return [
        *declarations,
        Declaration("", "call", f"if not {CLASSES}:"),
        Declaration("", "call", Join(("    ", call("self.reset_classifier", "0")))),
    ]


def classifier_methods(
    tree: Tree, arguments: Arguments, layers: Mapping[str, Doc], first: InitFunction | None
) -> list[list[str]]:
    """The methods that give the classifier and put another one in its place, whose values `first` draws."""
    if arguments.classifier is None:
        refusal = call("NotImplementedError", literal("the head has no classifier to replace"))
        body, found = [Statement("raise ", refusal)], call("nn.Identity")
    else:
        found = tree.access(str(arguments.classifier.target))
        body = [Statement(f"self.{CLASSES} = ", CLASSES)]
        for path, layer in layers.items():
            body += assignment(tree, path, layer, instead="nn.Identity()")
            if first is not None and kind_of(tree.module(path)) in first.kinds:
                body.append(Statement("", first.call(tree.access(path), path)))
    summary = f"Put a new classifier of {CLASSES} in place; 0: none." if layers else ""
    return [
        method("get_classifier", {}, "nn.Module", "", [Statement("return ", found)]),
        method("reset_classifier", {CLASSES: _INT}, "None", summary, body),
    ]


def assignment(tree: Tree, path: str, value: Doc, instead: str = "") -> list[Statement]:
    """The statements that put a value at a path; where there are no classes, `instead`."""
    parent, _, name = path.rpartition(".")
    target = tree.access(path)

    def put(value: Doc, level: int = 0) -> Statement:
        if target.startswith("getattr"):
            holder = tree.access(parent) if parent else "self"
            return Statement("", call("setattr", holder, literal(name), value), level)
        return Statement(f"{target} = ", value, level)

    if not instead:
        return [put(value)]
    one = put(f"{flat(value)} if {CLASSES} else {instead}")
    if len(flat(one.doc)) + len(one.prefix) + 8 <= WIDTH:
        return [one]
    return [Statement(f"if {CLASSES}:"), put(value, 1), Statement("else:"), put(instead, 1)]


def head_method(td: TopDownNet, tree: Tree, units: Sequence[Unit], carrier: Carrier, arguments: Arguments) -> list[str]:
    """The method that makes scores of the last map, or what the classifier reads of it."""
    graph = td.segments[-1].graph
    nodes = list(graph.nodes)
    results = handed_on(graph)
    names: dict[fx.Node, str] = {node: str(node.target) for node in nodes if node.op == "placeholder"}
    given = {**dict.fromkeys(names.values(), TENSOR), "pre_logits": _BOOL}

    def write(nodes: list[fx.Node], names: dict[fx.Node, str], results: tuple[fx.Node, ...]) -> list[Statement]:
        return write_body(read_steps(nodes, tree, carrier, units=units), tree, names, results, set())

    summary = "Class scores from the last map"
    cut = _cut(nodes, tree, arguments, units)
    if cut is None:
        return method("forward_head", given, TENSOR, f"{summary}.", write(nodes, names, results))
    start, container, place = cut
    features = nodes[start].all_input_nodes[0]
    statements = write(nodes[:start], names, (features,))
    last = statements.pop()
    if last.doc != "x":
        statements.append(replace(last, prefix="x = "))
    scores = write(nodes[start:], {features: "x"}, results)
    read: Doc = call(f"{container}[:{place}]", "x") if place else "x"
    one = f"{flat(read)} if pre_logits else {flat(scores[0].doc)}"
    if len(scores) == 1 and len(one) + len("        return ") <= WIDTH:
        statements.append(Statement("return ", one))
    else:
        statements += [Statement("if pre_logits:"), Statement("return ", read, 1), *scores]
    return method("forward_head", given, TENSOR, f"{summary}; `pre_logits`: what the classifier reads.", statements)


def _cut(nodes: list[fx.Node], tree: Tree, arguments: Arguments, units: Sequence[Unit]) -> tuple[int, str, int] | None:
    """Where the classifier begins: the node's place, and the Sequential that it is in, called whole, with its place.

    None if there is no classifier, or what is computed before it is read after it too.
    """
    classifier = arguments.classifier
    if classifier is None:
        return None
    start, container, place = nodes.index(classifier), "", 0
    parent = str(classifier.target).rpartition(".")[0]
    if parent and tree.kind(parent) == "sequence":
        children = [f"{parent}.{child}" for child in own_children(tree.module(parent))]
        first = start - children.index(str(classifier.target))
        run = nodes[max(first, 0) : first + len(children)]
        chained = all(list(before.users) == [after] for before, after in pairwise(run))
        paths = {unit.nodes[0]: unit.path for unit in units if len(unit.nodes) == 1}
        if [paths.get(node, str(node.target)) for node in run] == children and chained:
            start, container, place = first, tree.access(parent), nodes.index(classifier) - first
    inputs = nodes[start].all_input_nodes
    before, after = set(nodes[:start]), set(nodes[start:])
    crossing = {node for node in before if after & set(node.users)}
    return (start, container, place) if len(inputs) == 1 and crossing <= set(inputs) else None
