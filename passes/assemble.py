"""Put graphs and layers together: the top-down network, with a report of what it is (SPEC 2.10)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import fx, nn

from td_compiler.capture.evaluate import evaluate
from td_compiler.capture.meta import ShapesOnly, is_meta
from td_compiler.capture.skeleton import skeleton
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import Plan, facts, noted, plan
from td_compiler.graph.operators import Kind, Pair, lookup
from td_compiler.graph.states import Building
from td_compiler.layers.even_kernels import EvenConv2d
from td_compiler.layers.pyramid import Pyramid, factor_pair
from td_compiler.network.base import TopDownNet, plant
from td_compiler.network.fast import folded
from td_compiler.network.segments import Segment, handed_on
from td_compiler.passes.homes import homes_of
from td_compiler.passes.nodes import place_of
from td_compiler.report.report import Cost, Report, StageReport

__all__ = ["assemble"]


def assemble(building: Building) -> TopDownNet:
    """The network and its report. It is run once on the meta device, which checks every shape and counts every cost."""
    for name, other in building.names.items():
        building.notes.append(f"{name} is a name of the network's own: the source's stands under {other}.")
    names = [f"stage{stage.key}" for stage in building.stages] + ["head"]
    scales = [stage.scale for stage in building.stages] + [(1, 1)]
    segments = [Segment(*parts) for parts in zip(names, map(_plain, scales), building.graphs(), strict=True)]
    pyramid = Pyramid([_plain(s.scale) for s in reversed(building.stages)], building.options.downsample)
    prologue = Segment("prologue", 1, building.prologue_graph) if building.prologue_graph is not None else None
    for module in building.modules.values():
        _pad_explicitly(module)
    parts = _in_order_of_use(building)
    parts |= _second_names(building, parts)
    unfolded = None
    if building.options.fast:
        pixels = [math.prod(building.map_size(stage.scale)) for stage in building.stages]
        unfolded, segments = segments, folded(segments, pixels, building.modules)
    report = _report(building, pyramid.scales, segments)
    for graph in {id(each): each.graph for each in (prologue, *segments, *(unfolded or ())) if each}.values():
        for node in graph.nodes:
            known = plan(node)
            homes = homes_of(building, node)
            noted(node, Plan(known.unit, known.class_name, growth=known.growth, homes=homes))
    network = TopDownNet(parts, segments, pyramid, report, prologue, unfolded, building.channels_last)
    made = set(building.modules.values())
    for module in network.modules():
        if module not in made:
            module.training = building.bottom_up.model.training
    _ensures(building, network)
    return network


def _pad_explicitly(module: nn.Module) -> None:
    """Make a convolution of torch's own that pads more on one side, under the word "same", one that says how."""
    if type(module) is nn.Conv2d and module.padding == "same" and module.padding_mode == "zeros":
        extents = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(extent % 2 for extent in extents):
            module.__class__ = EvenConv2d
            module.padding = tuple(extent // 2 for extent in extents)


def _ensures(building: Building, network: TopDownNet) -> None:
    assert network.scales[0] == 1
    for stage, row in zip(reversed(building.stages), network.report.stages[:-1], strict=True):
        size, expected = row.top_down.size, building.map_size(stage.scale)
        assert size == expected, f"the map at scale {stage.key} is {size}, not {expected}"


def _in_order_of_use(building: Building) -> dict[str, nn.Module | torch.Tensor]:
    """Layers, parameters and buffers by path, in the order in which the graphs first use them."""
    parts: dict[str, nn.Module | torch.Tensor] = {**building.modules, **building.parameters}
    graphs = filter(None, [building.prologue_graph, *building.graphs()])
    used = dict.fromkeys(str(node.target) for graph in graphs for node in graph.nodes)
    return {
        path: parts[path]
        for path in [*(path for path in used if path in parts), *(path for path in parts if path not in used)]
    }


def _second_names(
    building: Building, parts: dict[str, nn.Module | torch.Tensor]
) -> dict[str, nn.Module | torch.Tensor]:
    """Layers with parameters that the source holds under several names, by those under which it does not call them."""
    homes: dict[int, list[str]] = {}
    for path, module in building.bottom_up.model.named_modules(remove_duplicate=False):
        if next(module.parameters(), None) is not None:
            homes.setdefault(id(module), []).append(path)
    found: dict[str, nn.Module | torch.Tensor] = {}
    for paths in (paths for paths in homes.values() if len(paths) > 1):
        own = [building.own_path(path) for path in paths]
        called = next((path for path in own if path in building.modules and building.layers[path].own), None)
        for path in own:
            above = itertools.accumulate(path.split("."), "{}.{}".format)
            below = any(part.startswith(f"{path}.") for part in parts)
            if called is not None and not below and not any(part in parts for part in above):
                found[path] = building.modules[called]
    return found


def _plain(scale: Pair) -> int | Pair:
    return scale[0] if scale[0] == scale[1] else scale


def _report(building: Building, scales: tuple[int | Pair, ...], segments: list[Segment]) -> Report:
    with ShapesOnly():
        values = _run_on_meta(building, segments)
    by_name = {segment.name: segment.graph for segment in segments}
    rows = []
    # By rank, not by scale: with the stem's factors leading, the two networks' scales may differ.
    for native, stage in zip(building.bottom_up.stages, reversed(building.stages), strict=True):
        graphs = [by_name[f"stage{stage.key}"]]
        if stage.scale == (1, 1) and building.prologue_graph is not None:
            graphs.insert(0, building.prologue_graph)
        rows.append(
            StageReport(
                f"stage{stage.key}",
                _plain(stage.scale),
                _bottom_up_cost(building, native.scale, len(native.units)),
                _top_down_cost(building, values, graphs, stage.scale, len(stage.units)),
            )
        )
    head = building.bottom_up.head
    bottom_up = _cost(building.bottom_up.captured.module, lambda n: facts(n).value, head, (1, 1), 0) if head else None
    top_down = _top_down_cost(building, values, [segments[-1].graph], (1, 1), 0)
    rows.append(StageReport("head", 1, bottom_up, top_down))
    source = type(building.bottom_up.model).__name__
    size, laws = building.bottom_up.input_size, building.initialisation.laws
    size = (building.options.in_chans or size[0], *size[1:])
    new = frozenset(path for path in building.modules if not building.layers[path].own)
    return Report(source, size, scales, tuple(rows), tuple(building.notes), building.options, laws, new)


def _run_on_meta(building: Building, segments: list[Segment]) -> dict[fx.Node, torch.Tensor]:
    """Every node's value for as many images as the source was traced with, without computing one."""
    parts: dict[str, nn.Module | torch.Tensor] = {**building.modules, **building.parameters}
    bones: nn.Module | dict[str, nn.Module | torch.Tensor] = parts
    if not is_meta(building.bottom_up.device):
        plant(root := nn.Module(), parts)
        bones = skeleton(root)
    values: dict[fx.Node, torch.Tensor] = {}
    images = facts(building.bottom_up.captured.image).value
    if (prologue := building.prologue_graph) is not None:
        for node in prologue.nodes:
            values[node] = images if node.op == "placeholder" else _evaluate(node, bones, values)
        images = values[prologue.output_node()]
    else:
        images = images.new_empty(len(images), building.image_channels, *images.shape[2:])
    carried: tuple[torch.Tensor, ...] = (images,)
    for segment in segments:
        graph, size = segment.graph, building.map_size(factor_pair(segment.scale))
        for node in graph.nodes:
            if node.op == "placeholder":
                is_image = node.target == "image"
                values[node] = (
                    images.new_empty(*images.shape[:2], *size) if is_image else carried[node.target == "older"]
                )
            else:
                values[node] = _evaluate(node, bones, values)
        carried = tuple(values[node] for node in handed_on(graph))
    expected = building.output_shape
    assert carried[0].shape == expected, f"the output is {tuple(carried[0].shape)}, not {tuple(expected)}"
    return values


def _evaluate(
    node: fx.Node, bones: nn.Module | Mapping[str, nn.Module | torch.Tensor], values: dict[fx.Node, torch.Tensor]
) -> torch.Tensor:
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


def _bottom_up_cost(building: Building, scale: Pair, units: int) -> Cost | None:
    """A strided unit counts, whole, at the scale that it leads to, as does a pooling; the prologue at the image's."""
    inside = [u for u in building.bottom_up.units if facts(u.output).scale == scale]
    nodes = [
        *(building.bottom_up.prologue if scale == (1, 1) else ()),
        *(node for unit in inside for node in unit.nodes),
    ]
    if not nodes:
        return None
    cost = _cost(building.bottom_up.captured.module, lambda n: facts(n).value, nodes, scale, units)
    last = inside[-1].output if inside else building.bottom_up.image
    return replace(cost, size=facts(last).size or cost.size, width=facts(last).width)


def _top_down_cost(
    building: Building, values: dict[fx.Node, torch.Tensor], graphs: list[fx.Graph], scale: Pair, units: int
) -> Cost:
    nodes = [n for graph in graphs for n in graph.nodes if n.op.startswith("call_")]
    return _cost(lambda n: building.modules.get(str(n.target)), values.__getitem__, nodes, scale, units)


def _cost(module_of, value_of, nodes: Iterable[fx.Node], scale: Pair, units: int) -> Cost:  # type: ignore[no-untyped-def]
    modules: set[nn.Module] = set()
    macs = activations = 0
    last = None
    for node in nodes:
        module, value = module_of(node), value_of(node)
        if not isinstance(value, torch.Tensor) or not value.dim():  # a number, of no image
            continue
        last, numbers = value, value.numel() // len(value)
        activations += numbers * value.element_size()
        if module is not None:
            modules.add(module)
            row = lookup(node, module)
            if row is not None and row.kind in {Kind.CONV, Kind.LINEAR}:
                macs += round(numbers * row.products(module))
    assert last is not None
    size = tuple(last.shape[-2:]) if last.dim() == 4 else (1, 1)
    parameters = sum(p.numel() for module in modules for p in _parameters(module))
    return Cost(_plain(scale), size, last.shape[1], units, parameters, macs, activations)  # type: ignore[arg-type]


def _parameters(layer: nn.Module) -> Iterable[nn.Parameter]:
    return layer.parameters() if layer._modules else {p for p in layer._parameters.values() if p is not None}
