"""The class of the whole network: methods for the pyramid, every stage and the head, and what runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import fx, nn

from td_compiler.emission.arguments import Arguments
from td_compiler.emission.body import write_body
from td_compiler.emission.carry import Carrier, Importer
from td_compiler.emission.classes import Declaration
from td_compiler.emission.containers import with_entries
from td_compiler.emission.graph_steps import read_steps
from td_compiler.emission.head import assignment, classifier_methods, head_method, number_statements, with_classifier
from td_compiler.emission.initial_values import InitFunction
from td_compiler.emission.layout import Doc, Group, Statement, call, lay_out, literal
from td_compiler.emission.steps import call_sequences, make_loops
from td_compiler.emission.text import TENSOR, docstring, init_lines, method
from td_compiler.emission.tree import Tree
from td_compiler.emission.units import Unit, is_image
from td_compiler.errors import ConversionError
from td_compiler.layers.pyramid import DOWNSAMPLERS, laplacian_bands
from td_compiler.network.segments import carried, handed_on

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet
    from td_compiler.network.segments import Segment

__all__ = ["network_class"]

_LEVELS = f"list[{TENSOR}]"
_IMAGES = {"images": TENSOR}


def _scale(scale: int | tuple[int, int]) -> str:
    return str(scale) if isinstance(scale, int) else f"{scale[0]}x{scale[1]}"


def network_class(
    td: TopDownNet,
    class_name: str,
    tree: Tree,
    units: Sequence[Unit],
    declarations: Sequence[Declaration],
    carrier: Carrier,
    arguments: Arguments,
    layers: Mapping[str, Doc],
    first: InitFunction | None,
) -> list[str]:
    """The lines of the network's class.

    `layers` are the layers that the number of classes is a number of, by path, as they are made; `first` draws the
    first values.

    Raises:
        ConversionError: if the pyramid's downsampling is a module or cannot be carried over as source.
    """
    taken = {declaration.name for declaration in declarations} | set(dir(nn.Module()))
    names = [_free_name(segment.name, taken) for segment in td.segments[:-1]]
    prologue = _free_name("prepare", taken)
    forward = Statement("return ", call("self.forward_head", call("self.forward_features", "images")))
    features = Statement("return ", "self.stage_maps(self.pyramid(images))[-1]")
    scores = Statement("return ", call("self.forward_head", "self.stage_maps(levels)[-1]"))
    stages = zip(td.parts[:-1], names if td.prologue is None else [prologue, *names], strict=True)
    methods = [
        *classifier_methods(tree, arguments, layers, first),
        *([] if isinstance(carrier, Importer) else [_pyramid_method(td, carrier, prologue)]),
        *(_segment_method(td, segment, name, tree, units, carrier) for segment, name in stages),
        _maps_method(td, names),
        method("forward_features", _IMAGES, TENSOR, "The last map, of the images' size.", [features]),
        head_method(td, tree, units, carrier, arguments),
        method(
            "forward_pyramid", {"levels": _LEVELS}, TENSOR, "Class scores from the images at every scale.", [scores]
        ),
        method("forward", _IMAGES, TENSOR, "Class scores from images (N, C, H, W).", [forward]),
    ]
    used = _order_of_use(td)
    declarations = sorted(declarations, key=lambda line: used.get(line.name, len(used)))
    return [
        f"class {class_name}(nn.Module):",
        *docstring(f"Top-down {td.report.source or 'network'}: class scores from images (N, C, H, W).", indent=4),
        "",
        *lay_out("scales = ", literal(td.scales), 4),
        "",
        *init_lines(
            arguments.signature,
            {},
            with_classifier(declarations, layers),
            number_statements(td, arguments),
        ),
        *_tie_lines(td, tree),
        *(first.calls if first is not None and not isinstance(carrier, Importer) else []),  # that one has its values
        *(["        self.to(memory_format=torch.channels_last)"] if _is_channels_last(td) else []),
        *(line for lines in methods for line in ["", *lines]),
    ]


def _tie_lines(td: TopDownNet, tree: Tree) -> list[str]:
    """The lines that make one of layers and of weights that stand under two names."""
    lines: list[str] = []
    modules: dict[int, str] = {}
    again: list[str] = []  # paths of layers that have another name already
    for path, module in td.named_modules(remove_duplicate=False):
        first = modules.setdefault(id(module), path)
        if first != path and not any(path.startswith(f"{other}.") for other in again):
            again.append(path)
            lines += _assignment(tree, path, first)
    tensors: dict[int, str] = {}
    for path, parameter in td.named_parameters(remove_duplicate=False):
        first = tensors.setdefault(id(parameter), path)
        if first != path and not any(path.startswith(f"{other}.") for other in again):
            lines += _assignment(tree, path, first)
    return lines


def _assignment(tree: Tree, path: str, first: str) -> list[str]:
    return [line for each in assignment(tree, path, tree.access(first)) for line in lay_out(each.prefix, each.doc, 8)]


def _is_channels_last(td: TopDownNet) -> bool:
    return any(p.dim() == 4 and not p.is_contiguous() for p in td.parameters())


def _order_of_use(td: TopDownNet) -> dict[str, int]:
    """The network's direct children in the order in which the graphs use them."""
    nodes = [node for segment in td.parts for node in segment.graph.nodes]
    targets = [str(node.target) for node in nodes if node.op in ("call_module", "get_attr")]
    return {name: i for i, name in enumerate(dict.fromkeys(target.partition(".")[0] for target in targets))}


def _free_name(name: str, taken: set[str]) -> str:
    """A method's name that no layer of the network has."""
    while name in taken:
        name = f"run_{name}"
    return name


def _pyramid_method(td: TopDownNet, carrier: Carrier, prologue: str) -> list[str]:
    downsample = td.pyramid.downsample
    if isinstance(downsample, nn.Module):
        raise ConversionError(
            f"pyramid: the downsampling {type(downsample).__name__} is a module, which emitted source "
            "has no place for; give downsample as a function (images, factor) at the top level of a module."
        )
    function = DOWNSAMPLERS[downsample] if isinstance(downsample, str) else downsample
    resized = f"{carrier.carry(function, 'pyramid')}(images, scale) for scale in self.scales[1:]"
    levels = f"[images, *({resized})]" if td.scales[1:] else "[images]"
    result = f"{carrier.carry(laplacian_bands, 'pyramid')}({levels})" if downsample == "laplacian" else levels
    statements = [Statement("return ", result)]
    if td.prologue is not None:
        statements.insert(0, Statement("images = ", call(f"self.{prologue}", "images")))
    return method("pyramid", _IMAGES, _LEVELS, "The images at every scale, finest first.", statements)


def _maps_method(td: TopDownNet, names: Sequence[str]) -> list[str]:
    images = [f"image{_scale(scale)}" for scale in td.scales]
    unpacked = ", ".join(images) if len(images) > 1 else f"({images[0]},)"
    statements = [Statement(f"{unpacked} = levels")]
    maps: list[str] = []
    given: dict[str, str] = {}
    for segment, name, image in zip(td.segments[:-1], names, reversed(images), strict=True):
        given["image"] = image
        run = call(f"self.{name}", *(given[argument] for argument in segment.inputs))
        given = {kind: f"{kind}{_scale(segment.scale)}" for kind in carried(handed_on(segment.graph))}
        maps.append(given["x"])
        statements.append(Statement(", ".join(given.values()) + " = ", run))
    statements.append(Statement("return ", Group("[", tuple(maps), "]")))
    summary = "The map after every stage, coarse to fine, from the images at every scale."
    return method("stage_maps", {"levels": _LEVELS}, _LEVELS, summary, statements)


def _segment_method(
    td: TopDownNet, segment: Segment, name: str, tree: Tree, units: Sequence[Unit], carrier: Carrier
) -> list[str]:
    nodes = list(segment.graph.nodes)
    placeholders: dict[fx.Node, str] = {node: str(node.target) for node in nodes if node.op == "placeholder"}
    results = handed_on(segment.graph)
    fixed = {node for node in placeholders if is_image(node)}
    steps = call_sequences(read_steps(nodes, tree, carrier, units=units), tree, results)
    steps = with_entries(make_loops(steps, tree, results, fixed), results)
    statements = write_body(steps, tree, placeholders, results, fixed)
    summary = "What is done to the images before they are scaled." if segment is td.prologue else ""
    returns = TENSOR if len(results) == 1 else f"tuple[{', '.join([TENSOR] * len(results))}]"
    return method(name, dict.fromkeys(placeholders.values(), TENSOR), returns, summary, statements)
