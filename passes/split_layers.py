"""A layer that is used at several widths becomes several (SPEC 2.14)."""

from __future__ import annotations

from torch import fx, nn

from td_compiler.graph.notes import facts, plan, source_of
from td_compiler.graph.operators import layer_row
from td_compiler.graph.states import Pass, TopDown, layer_of
from td_compiler.graph.units import Layer

__all__ = ["SplitLayers", "split_layer"]

Widths = tuple[int, int]
"""Channels read, channels put out."""


class SplitLayers(Pass[TopDown]):
    """Layers called more than once stay one where all of their uses have the same widths, else come apart.

    The use that has the source's widths keeps the name and the weights; the report says so.
    """

    def requires(self, top_down: TopDown) -> None:
        assert all(plan(n).carries for n in top_down.head_graph.find_nodes(op="call_module")), "SetWidths has not run"

    def apply(self, top_down: TopDown) -> None:
        for path, uses in _uses(top_down).items():
            widths = {node: _widths(node) for node, _ in uses}
            kinds = list(dict.fromkeys(widths.values()))
            if len(kinds) == 1 or not _has_widths(top_down.layers[path].prototype):
                continue
            kept = next((widths[node] for node, _ in uses if widths[node] == _source_widths(node)), kinds[0])
            names = {kept: path}
            for node, key in uses:
                if widths[node] not in names:
                    names[widths[node]] = split_layer(top_down, path, key)
                node.target = names[widths[node]]
            others = ", ".join(f"{name} ({read} to {made})" for (read, made), name in names.items() if name != path)
            top_down.notes.append(
                f"{path} is one layer in the source; its uses differ in width here, so it has come apart: {path}"
                f" ({kept[0]} to {kept[1]}), {others}."
            )

    def ensures(self, top_down: TopDown) -> None:
        for path, uses in _uses(top_down).items():
            if _has_widths(top_down.layers[path].prototype):
                assert len({_widths(node) for node, _ in uses}) == 1, f"{path} is used at several widths"


def _uses(top_down: TopDown) -> dict[str, list[tuple[fx.Node, str]]]:
    """The calls of every layer of the source that is called more than once, each with the name of its stage."""
    found: dict[str, list[tuple[fx.Node, str]]] = {}
    keys = [*(stage.key for stage in top_down.stages), "head"]
    for graph, key in zip(top_down.graphs(), keys, strict=True):
        for node in graph.find_nodes(op="call_module"):
            layer = layer_of(top_down, node)
            if layer is not None and layer.own:
                found.setdefault(str(node.target), []).append((node, key))
    return {path: uses for path, uses in found.items() if len(uses) > 1}


def _has_widths(module: nn.Module) -> bool:
    """Whether a layer has parameters whose shape follows the channels."""
    row = layer_row(module)
    shared = isinstance(module, nn.PReLU) and module.num_parameters == 1
    return row is not None and bool(row.axes) and not shared


def _widths(node: fx.Node) -> Widths:
    read = next(plan(n).width for n in node.all_input_nodes if plan(n).carries)
    return read, plan(node).width


def _source_widths(node: fx.Node) -> Widths:
    source = source_of(node)
    read = next(facts(n).width for n in source.all_input_nodes if facts(n).carries)
    return read, facts(source).width


def split_layer(top_down: TopDown, path: str, key: str) -> str:
    """Make a layer like another one for its uses in a stage; returns its path."""
    layer = top_down.layers[path]
    name = _free_path(top_down, f"{path.replace('.', '_')}_{key}")
    top_down.layers[name] = Layer(layer.prototype, source=layer.source, changes=dict(layer.changes))
    return name


def _free_path(top_down: TopDown, path: str) -> str:
    while path in top_down.layers or path in top_down.names.values():
        path += "_"
    return path
