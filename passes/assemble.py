"""Put graphs and layers together: the top-down network, with a report of what it is (SPEC 2.10)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx, nn

from td_compiler.capture.evaluate import evaluate
from td_compiler.capture.meta import ShapesOnly
from td_compiler.capture.skeleton import skeleton
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import Plan, facts, noted, plan
from td_compiler.graph.operators import Kind, Pair, lookup
from td_compiler.graph.states import Conversion, Pass
from td_compiler.layers.pyramid import Pyramid
from td_compiler.network.base import Segment, TopDownNet, handed_on, plant
from td_compiler.passes.homes import homes_of
from td_compiler.passes.nodes import place_of
from td_compiler.report.report import Cost, Report, StageReport

__all__ = ["Assemble"]


class Assemble(Pass):
    """Sets `conversion.result`. Runs it once on the meta device, which checks every shape and counts every cost."""

    def requires(self, conversion: Conversion) -> None:
        assert conversion.modules, "BuildLayers has not run"
        assert "RewriteSizes" in conversion.done, "RewriteSizes has not run"

    def apply(self, conversion: Conversion) -> None:
        for name, other in conversion.names.items():
            conversion.notes.append(f"{name} is a name of the network's own: the source's stands under {other}.")
        names = [f"stage{stage.key}" for stage in conversion.stages] + ["head"]
        scales = [stage.scale for stage in conversion.stages] + [(1, 1)]
        segments = [Segment(*parts) for parts in zip(names, map(_plain, scales), conversion.graphs(), strict=True)]
        pyramid = Pyramid([_plain(s.scale) for s in reversed(conversion.stages)], conversion.options.downsample)
        prologue = Segment("prologue", 1, conversion.prologue_graph) if conversion.prologue_graph is not None else None
        parts = _in_order_of_use(conversion)
        parts |= _second_names(conversion, parts)
        network = TopDownNet(parts, segments, pyramid, _EMPTY, prologue)
        made = set(conversion.modules.values())
        for module in network.modules():
            if module not in made:
                module.training = conversion.model.training
        network.report = _report(conversion, network)
        for segment in network.parts:
            for node in segment.graph.nodes:
                known = plan(node)
                homes = homes_of(conversion, node)
                noted(node, Plan(known.unit, known.class_name, growth=known.growth, homes=homes))
        conversion.result = network

    def ensures(self, conversion: Conversion) -> None:
        assert conversion.result is not None
        assert conversion.result.scales[0] == 1
        rows = conversion.result.report.stages[:-1]
        for stage, row in zip(reversed(conversion.stages), rows, strict=True):
            size, expected = row.top_down.size, conversion.map_size(stage.scale)
            assert size == expected, f"the map at scale {stage.key} is {size}, not {expected}"


def _in_order_of_use(conversion: Conversion) -> dict[str, nn.Module | torch.Tensor]:
    """Layers, parameters and buffers by path, in the order in which the graphs first use them."""
    parts: dict[str, nn.Module | torch.Tensor] = {**conversion.modules, **conversion.parameters}
    graphs = filter(None, [conversion.prologue_graph, *conversion.graphs()])
    used = dict.fromkeys(str(node.target) for graph in graphs for node in graph.nodes)
    return {
        path: parts[path]
        for path in [*(path for path in used if path in parts), *(path for path in parts if path not in used)]
    }


def _second_names(
    conversion: Conversion, parts: dict[str, nn.Module | torch.Tensor]
) -> dict[str, nn.Module | torch.Tensor]:
    """Layers with parameters that the source holds under several names, by those under which it does not call them."""
    homes: dict[int, list[str]] = {}
    for path, module in conversion.model.named_modules(remove_duplicate=False):
        if next(module.parameters(), None) is not None:
            homes.setdefault(id(module), []).append(path)
    found: dict[str, nn.Module | torch.Tensor] = {}
    for paths in (paths for paths in homes.values() if len(paths) > 1):
        own = [conversion.own_path(path) for path in paths]
        called = next((path for path in own if path in conversion.modules and conversion.layers[path].own), None)
        for path in own:
            above = itertools.accumulate(path.split("."), "{}.{}".format)
            below = any(part.startswith(f"{path}.") for part in parts)
            if called is not None and not below and not any(part in parts for part in above):
                found[path] = conversion.modules[called]
    return found


_EMPTY = Report("", (1, 1, 1), (), ())


def _plain(scale: Pair) -> int | Pair:
    return scale[0] if scale[0] == scale[1] else scale


def _report(conversion: Conversion, network: TopDownNet) -> Report:
    with ShapesOnly():
        values = _run_on_meta(conversion)
    rows = []
    # By rank, not by scale: with the stem's factors leading, the two networks' scales may differ.
    for native, stage in zip(conversion.found.stages, reversed(conversion.stages), strict=True):
        graphs = [stage.graph]
        if stage.scale == (1, 1) and conversion.prologue_graph is not None:
            graphs.insert(0, conversion.prologue_graph)
        rows.append(
            StageReport(
                f"stage{stage.key}",
                _plain(stage.scale),
                _bottom_up_cost(conversion, native.scale, len(native.units)),
                _top_down_cost(conversion, values, graphs, stage.scale, len(stage.units)),
            )
        )
    head = conversion.found.head
    bottom_up = _cost(conversion.captured.module, lambda n: facts(n).value, head, (1, 1), 0) if head else None
    top_down = _top_down_cost(conversion, values, conversion.graphs()[-1:], (1, 1), 0)
    rows.append(StageReport("head", 1, bottom_up, top_down))
    source = type(conversion.model).__name__
    return Report(
        source, conversion.input_size, network.scales, tuple(rows), tuple(conversion.notes), conversion.options
    )


def _run_on_meta(conversion: Conversion) -> dict[fx.Node, torch.Tensor]:
    """Every node's value for as many images as the source was traced with, without computing one."""
    bones = nn.Module()
    plant(bones, {**conversion.modules, **conversion.parameters})
    if conversion.device.type != "meta":
        bones = skeleton(bones)
    values: dict[fx.Node, torch.Tensor] = {}
    images = facts(conversion.captured.image).value
    if (prologue := conversion.prologue_graph) is not None:
        for node in prologue.nodes:
            values[node] = images if node.op == "placeholder" else _evaluate(node, bones, values)
        images = values[prologue.output_node()]
    carried: tuple[torch.Tensor, ...] = (images,)
    for graph, scale in zip(conversion.graphs(), [*(s.scale for s in conversion.stages), (1, 1)], strict=True):
        size = conversion.map_size(scale)
        for node in graph.nodes:
            if node.op == "placeholder":
                is_image = node.target == "image"
                values[node] = (
                    images.new_empty(*images.shape[:2], *size) if is_image else carried[node.target == "older"]
                )
            else:
                values[node] = _evaluate(node, bones, values)
        carried = tuple(values[node] for node in handed_on(graph))
    expected = conversion.output_shape
    assert carried[0].shape == expected, f"the output is {tuple(carried[0].shape)}, not {tuple(expected)}"
    return values


def _evaluate(node: fx.Node, bones: nn.Module, values: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
    try:
        value: torch.Tensor = evaluate(node, bones, values.__getitem__)
    except Exception as error:
        shapes = ", ".join(str(tuple(values[n].shape)) for n in node.all_input_nodes if hasattr(values[n], "shape"))
        source = plan(node).source
        raise ConversionError(
            f"{getattr(node.target, '__name__', node.target)} at {place_of(source) if source else node.target!r} cannot"
            f" follow the top-down network's shapes ({shapes}): {(str(error).splitlines() or [''])[0]}"
        ) from error
    return value


def _bottom_up_cost(conversion: Conversion, scale: Pair, units: int) -> Cost | None:
    """A strided unit counts, whole, at the scale that it leads to, as does a pooling; the prologue at the image's."""
    head = set(conversion.found.head)
    inside = [u for u in conversion.units if facts(u.output).scale == scale and u.output not in head]
    nodes = [*(conversion.prologue if scale == (1, 1) else ()), *(node for unit in inside for node in unit.nodes)]
    if not nodes:
        return None
    cost = _cost(conversion.captured.module, lambda n: facts(n).value, nodes, scale, units)
    last = inside[-1].output if inside else conversion.prepared
    return replace(cost, size=facts(last).size or cost.size, width=facts(last).width)


def _top_down_cost(
    conversion: Conversion, values: dict[fx.Node, torch.Tensor], graphs: list[fx.Graph], scale: Pair, units: int
) -> Cost:
    nodes = [n for graph in graphs for n in graph.nodes if n.op.startswith("call_")]
    return _cost(lambda n: conversion.modules.get(str(n.target)), values.__getitem__, nodes, scale, units)


def _cost(module_of, value_of, nodes: Iterable[fx.Node], scale: Pair, units: int) -> Cost:  # type: ignore[no-untyped-def]
    modules: set[nn.Module] = set()
    macs = activations = 0
    last = None
    for node in nodes:
        module, value = module_of(node), value_of(node)
        if not isinstance(value, torch.Tensor) or not value.dim():  # a number, of no image
            continue
        last = value
        activations += value[0].numel() * value.element_size()
        if module is not None:
            modules.add(module)
            row = lookup(node, module)
            if row is not None and row.kind in {Kind.CONV, Kind.LINEAR}:
                macs += round(value[0].numel() * row.products(module))
    assert last is not None
    size = tuple(last.shape[-2:]) if last.dim() == 4 else (1, 1)
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    return Cost(_plain(scale), size, last.shape[1], units, parameters, macs, activations)  # type: ignore[arg-type]
