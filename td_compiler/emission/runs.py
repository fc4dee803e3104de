"""A Sequential that some blocks of a kind interrupt, such as by an upsampling, runs in two parts in all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from td_compiler.emission.align import Body
from td_compiler.emission.layout import Doc, Value, flat, substitute
from td_compiler.emission.steps import Step, part_of
from td_compiler.emission.tree import Tree, own_children

__all__ = ["in_parts"]

_Segment = tuple[int, int, int, int]  # its steps, from and to; its layers, from and to


def in_parts(bodies: Sequence[Body], trees: Sequence[Tree]) -> list[Body]:
    """The bodies of blocks of one kind, with Sequentials that some of them interrupt in two parts in all."""
    bodies = list(bodies)
    for container in sorted(
        {path for body, tree in zip(bodies, trees, strict=True) for path in _interrupted(body, tree)}
    ):
        found = [_segments(body, tree, container) for body, tree in zip(bodies, trees, strict=True)]
        parts = [segments for segments in found if segments]
        if any(segments is None or len(segments) > 2 for segments in found) or max(map(len, parts)) < 2:
            continue
        usual = Counter(segments[0][3] for segments in parts if len(segments) == 2).most_common(1)[0][0]
        bodies = [
            _split(body, tree, container, segments, usual) if segments else body
            for body, tree, segments in zip(bodies, trees, found, strict=True)
        ]
    return bodies


def _interrupted(body: Body, tree: Tree) -> set[str]:
    """The Sequentials of whose layers some are called by themselves."""
    parents = {path.rpartition(".")[0] for step in body.steps for path in [*step.members[:1], step.path]}
    return {path for path in parents if path and tree.kind(path) == "sequence"}


def _segments(body: Body, tree: Tree, container: str) -> list[_Segment] | None:
    """The runs of a Sequential's layers, in order; none where the body has no such layers, None where it has others."""
    if not tree.has(container) or tree.kind(container) != "sequence":
        return []
    size = len(own_children(tree.module(container)))
    segments: list[_Segment] = []
    before: fx.Node | None = None
    for i, step in enumerate(body.steps):
        first, last = _layers(step, container, size)
        if first == last:
            if f"{container}" in flat(step.doc).replace("][", "."):
                return None
            continue
        if first != (segments[-1][3] if segments else 0):
            return None
        if segments and segments[-1][1] == i and step.inputs == [before]:
            segments[-1] = (segments[-1][0], i + 1, segments[-1][2], last)
        else:
            segments.append((i, i + 1, first, last))
        before = step.node
    return segments if segments and segments[-1][3] == size else [] if not segments else None


def _layers(step: Step, container: str, size: int) -> tuple[int, int]:
    if step.members:
        if step.members[0].rpartition(".")[0] == container:
            return int(step.members[0].rpartition(".")[2]), int(step.members[-1].rpartition(".")[2]) + 1
        return 0, 0
    if step.path == container:
        return 0, size
    parent, _, name = step.path.rpartition(".")
    return (int(name), int(name) + 1) if parent == container and name.isdecimal() else (0, 0)


def _split(body: Body, tree: Tree, container: str, segments: list[_Segment], usual: int) -> Body:
    steps = list(body.steps)
    size = segments[-1][3]
    for start, end, first, last in reversed(segments):
        source, node = steps[start].inputs[0], steps[end - 1].node
        if len(segments) == 2:
            steps[start:end] = [part_of(tree, container, first, last, source, node)]
            continue
        between = fx.Graph().placeholder("x")
        grown = steps[start - 1] if start and steps[start - 1].node is source else None
        if grown is not None and flat(grown.doc).startswith("upsample"):
            read = grown.inputs[0]
            steps[start:end] = [part_of(tree, container, 0, size, source, node)]
            moved = _renamed(grown.doc, read, between)
            steps[start - 1 : start] = [part_of(tree, container, 0, 0, read, between), replace(grown, doc=moved)]
        else:
            at = min(usual, size)
            steps[start:end] = [
                part_of(tree, container, 0, at, source, between),
                part_of(tree, container, at, size, between, node),
            ]
    return replace(body, steps=tuple(steps))


def _renamed(doc: Doc, before: fx.Node, after: fx.Node) -> Doc:
    return substitute(doc, lambda atom: Value(after) if atom == Value(before) else atom)
