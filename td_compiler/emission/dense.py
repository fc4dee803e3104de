"""Layers that read the outputs of all layers before them, or whose outputs are all joined in the end, as one loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from td_compiler.emission.layout import Doc, Join, Value, call, flat
from td_compiler.emission.steps import Step, count_uses
from td_compiler.emission.tree import Tree, own_children

__all__ = ["MAPS", "collect"]

MAPS = "maps"
"""`Step.loop` of a loop that collects maps: the expression's parts are the first map, what it loops over, the call of a
layer, what is made of all maps in the end and, where it is not the first map, what the first layer reads."""

_FEWEST = 2


def collect(steps: list[Step], tree: Tree, results: Sequence[fx.Node]) -> list[Step]:
    """Steps in which all children of one container run one after the other and all that they make is joined."""
    for i in reversed(range(len(steps))):
        joined = _joined(steps[i])
        if joined is not None and len(joined[0]) > _FEWEST:
            run = _run(steps[: i + 1], joined, tree, results)
            if run is not None:
                start, step = run
                return [*collect(steps[:start], tree, [step.inputs[0]]), step, *steps[i + 1 :]]
    return steps


def _joined(step: Step) -> tuple[list[fx.Node], str] | None:
    """The maps that a step joins along their channels, and how; None for other steps."""
    if step.node.target is not torch.cat or not isinstance(step.doc, Join):
        return None
    maps = step.node.args[0] if step.node.args else None
    if not isinstance(maps, (list, tuple)) or not all(isinstance(each, fx.Node) for each in maps):
        return None
    if step.inputs != list(maps):
        return None
    first, _, rest = flat(step.doc).partition("x]" if isinstance(maps, list) else "x)")
    return list(maps), rest if first.startswith("torch.cat(") else ""


def _run(
    steps: list[Step], joined: tuple[list[fx.Node], str], tree: Tree, results: Sequence[fx.Node]
) -> tuple[int, Step] | None:
    """The loop that ends with the last of the steps, and where it starts."""
    (source, *made), rest = joined
    if not rest:
        return None
    places = {step.node: i for i, step in enumerate(steps)}
    if not all(node in places for node in made):
        return None
    layers = [steps[places[node]] for node in made]
    container = _container(layers, tree)
    if container is None:
        return None
    uses = count_uses(steps, results)
    own: set[int] = {len(steps) - 1, *(places[node] for node in made)}
    reads = [layer.inputs[0] for layer in layers]
    apart = reads[0] is not source and reads[1:] == made[:-1] and uses[reads[0]] == 1
    if reads == [source, *made[:-1]] or apart:
        inner, expected = f"{MAPS}[-1]", 2
    else:
        for k, read in enumerate(reads):
            before = _joined(steps[places[read]]) if read in places else None
            if k == 0 and read is source:
                continue
            if before is None or before != ([source, *made[:k]], rest) or uses[read] != 1:
                return None
            own.add(places[read])
        inner, expected = f"torch.cat({MAPS}{rest}", 0
    start = min(own)
    if own != set(range(start, len(steps))):
        return None
    for k, node in enumerate(made):
        if uses[node] != (expected if k < len(made) - 1 else 1) and expected:
            return None
        if any(node in step.inputs for i, step in enumerate(steps) if i not in own) or node in results:
            return None
    doc = Join((Value(source), container, call("layer", inner), f"torch.cat({MAPS}{rest}"))
    if apart:
        doc = Join((*doc.parts, Value(reads[0])))
    return start, Step(steps[-1].node, doc, loop=MAPS, is_unit=True)


def _container(layers: list[Step], tree: Tree) -> Doc | None:
    """What to loop over for all children of one module, in order; None if the layers are anything else."""
    parents = {layer.path.rpartition(".")[0] for layer in layers}
    if len(parents) != 1 or not all(layer.path for layer in layers):
        return None
    parent = parents.pop()
    children = list(own_children(tree.module(parent)))
    if [layer.path.rpartition(".")[2] for layer in layers] != children:
        return None
    access = tree.access(parent) if parent else "self"
    return access if tree.kind(parent) == "sequence" else f"{access}.children()"
