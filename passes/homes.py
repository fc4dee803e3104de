"""The modules of the source that hold a node, at the paths that they have in the top-down network."""

from __future__ import annotations

from torch import fx

from td_compiler.graph.notes import facts, plan
from td_compiler.graph.states import TopDown

__all__ = ["homes_of"]

Homes = tuple[tuple[str, str], ...]


def homes_of(top_down: TopDown, node: fx.Node) -> Homes:
    """(path, class name) of the modules inside a node's unit that hold it, outermost first.

    A new layer that is modelled on one of the source's stands in modules like that one's, as far as their names agree:
    `layer1.0.downsample.conv` in one like `layer2.0.downsample`.
    """
    unit, source = plan(node).unit, plan(node).source
    if source is None:
        return ()
    stack = [(top_down.own_path(path), kind.__name__) for path, kind in facts(source).modules if path]
    if node.op == "call_module" and source.op == "call_module":
        stack = _moved(stack, top_down.own_path(str(source.target)), str(node.target))
    inside = [(path, kind) for path, kind in stack if path != node.target]
    return tuple((path, kind) for path, kind in inside if not unit or path.startswith(f"{unit}."))


def _moved(stack: list[tuple[str, str]], before: str, after: str) -> list[tuple[str, str]]:
    """The modules around a layer, renamed as the layer was: where its new path ends like the old one."""
    if before == after:
        return stack
    old, new = before.split("."), after.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(reversed(old), reversed(new), strict=False)) if a != b), len(new))
    shared = min(shared, len(old) - 1, len(new) - 1)
    moved = []
    for path, kind in stack:
        names = path.split(".")
        if len(names) > len(old) - shared:
            moved.append((".".join([*new[: len(new) - shared], *names[len(old) - shared :]]), kind))
    return moved
