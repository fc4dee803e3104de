"""The emitted file: header, imports, carried definitions, the classes of units, and the network's class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from td_compiler import __version__
from td_compiler.emission.arguments import find_arguments
from td_compiler.emission.carry import Carrier, Importer
from td_compiler.emission.containers import class_of_containers, find_containers
from td_compiler.emission.declarations import Declarer
from td_compiler.emission.head import splits_head
from td_compiler.emission.initial_values import INIT, init_function
from td_compiler.emission.network_class import network_class
from td_compiler.emission.text import class_lines, docstring
from td_compiler.emission.tree import Tree
from td_compiler.emission.units import RESERVED, find_units, used_modules
from td_compiler.errors import ConversionError
from td_compiler.graph.names import is_attribute

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet

__all__ = ["emit_source", "library_source"]


def emit_source(td: TopDownNet, *, class_name: str, origin: str, command: str = "") -> str:
    """Standalone PyTorch source of a top-down network, importing torch alone.

    The network's class takes `td.state_dict()` with `strict=True` and then puts out what `td` does in eval mode, bit
    by bit. The text passes ruff and is formatted as ruff's formatter does at 120 columns.

    Args:
        td: the network, images (N, C, H, W) to class scores.
        class_name: what its class is called.
        origin: where the source network is from, for the header: `torchvision:resnet18`.
        command: the command or call that made it, for the header.

    Raises:
        ConversionError: if a layer or function is neither torch's nor can be carried over as source, or `class_name` is
            no name for a class.
    """
    if not is_attribute(class_name) or class_name in RESERVED:
        raise ConversionError(f"{class_name!r} is no name for a class: give an identifier that means nothing else.")
    _check_places(td)
    carrier = Carrier()
    classes = _classes(td, class_name, carrier)
    if both := sorted(classes.keys() & carrier.definitions.keys()):
        raise ConversionError(
            f"{both[0]} names a class of the source network, and a definition that emitted source needs: rename it."
        )
    first = [text for name, text in carrier.definitions.items() if name not in carrier.fast]
    last = [text for name, text in carrier.definitions.items() if name in carrier.fast]
    blocks = [text for name, text in classes.items() if name not in (class_name, INIT)]
    network = [text for name, text in classes.items() if name in (class_name, INIT)]
    body = "\n\n\n".join([*first, *blocks, *last, *network])
    carrier.use(body)
    head = ["# ruff: noqa"] if carrier.foreign else []
    head += [*_header(td, class_name, origin, command), "", *carrier.import_lines()]
    return "\n".join(head) + f"\n\n\n{body}\n"


def _check_places(td: TopDownNet) -> None:
    """Refuse a network in which modules have been put in the places of those that it was made of."""
    modules = dict(td.named_modules(remove_duplicate=False))
    for path in sorted(used_modules(td.parts)):
        if path not in modules:
            above = path
            while above not in modules:
                above = above.rpartition(".")[0]
            rest, kind = path[len(above) :].lstrip("."), type(modules[above]).__name__
            raise ConversionError(
                f"{above} is a {kind} now and has no {rest}: a network is written as it was converted; write it before"
                " its modules are replaced."
            )


def library_source(td: TopDownNet, class_name: str) -> tuple[str, dict[str, Any]]:
    """The text of a network's classes that runs where td-compiler is, and what the text names without defining it.

    It is that of :func:`emit_source`, but for definitions that are imported, and for layers and functions that have no
    form in text: in the place of these layers stand empty modules, for the network has its own.
    """
    carrier = Importer()
    body = "\n\n\n".join(_classes(td, class_name, carrier).values())
    carrier.use(body)
    return "\n".join([*carrier.import_lines(), "", "", body, ""]), carrier.held


def _classes(td: TopDownNet, class_name: str, carrier: Carrier) -> dict[str, str]:
    """The text of the classes by their names, what is used before what uses it; at last how layers are initialised."""
    tree = Tree(td, used_modules(td.parts), set())
    arguments = find_arguments(td, rates=not isinstance(carrier, Importer))
    units = [unit for unit in find_units(td.parts, tree) if not splits_head(unit, arguments)]
    declarer = Declarer(tree, carrier, arguments, {class_name, INIT, *RESERVED}, td.report.initialisation)
    declarer.add_units(units)
    called = find_containers(td.parts, units, tree)
    taken = {class_name, INIT, *RESERVED, *(shared.name for shared in declarer.classes)}
    containers, declarer.containers = class_of_containers(called, tree, carrier, taken)
    declarer.add_around()
    declarations = declarer.declare("", frozenset({"pyramid"}))
    layers, first = declarer.classifier(), init_function(td)
    network = network_class(td, class_name, tree, called, declarations, carrier, arguments, layers, first)
    lines = {shared.name: "\n".join(class_lines(shared)) for shared in declarer.classes}
    classes = {**lines, **containers, class_name: "\n".join(network)}
    return {**classes, INIT: "\n".join(first.lines)} if first is not None else classes


def _header(td: TopDownNet, class_name: str, origin: str, command: str) -> list[str]:
    dtypes = {tensor.dtype for tensor in td.parameters() if tensor.is_floating_point()}
    cast = f".to({dtypes.pop()})" if len(dtypes) == 1 and torch.float32 not in dtypes else ""
    made = f"The top-down counterpart (Lelekas et al., CVPRW 2020) of {origin}, written by td-compiler {__version__}"
    return docstring(
        f"Top-down {td.report.source or 'network'}: coarse to fine over an image pyramid.",
        [
            *([f"{made} with", f"    {command}"] if command else [f"{made}."]),
            "",
            f"    model = {class_name}(){cast}",
            "    model.load_state_dict(state)  # of the converted network",
            f"    scores = model(images)  # images (N, {td.report.input_size[0]}, H, W)",
            *_stage_table(td),
        ],
    )


def _stage_table(td: TopDownNet) -> list[str]:
    """A line for every stage, coarse to fine: its scale, width, and number of blocks."""
    rows = [("stage", "scale", "width", "blocks")]
    for row in reversed(td.report.stages[:-1]):
        name, blocks = row.name.removeprefix("stage"), str(row.top_down.units or "-")
        rows.append((name, f"1/{name}" if row.scale != 1 else "1", str(row.top_down.width), blocks))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return ["", *lines] if len(rows) > 1 else []
