"""Lift the image to the width of every stage (SPEC 2.1, 2.2)."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import fx, nn

from td_compiler.graph.axes import in_order
from td_compiler.graph.checks import has_upsampling
from td_compiler.graph.norms import written_norm
from td_compiler.graph.notes import Plan, facts, noted, plan
from td_compiler.graph.operators import Kind
from td_compiler.graph.states import Pass, TopDown
from td_compiler.graph.style import Style, add_layers, add_like, style_of
from td_compiler.graph.units import Layer, TopDownStage, Unit, UnitKind
from td_compiler.passes.same_size import amounts_for, same_size, write_padding
from td_compiler.passes.shifts import pixels_added

__all__ = ["InsertEntries"]

_LEFT_OUT = {Kind.POOL, Kind.PAD, Kind.DROPOUT, Kind.IDENTITY}


class InsertEntries(Pass[TopDown]):
    """Every stage gets an entry, a unit that reads the pyramid's image of its scale.

    In a network with stem it is a copy of the stem at stride 1; in one without a copy of the stage's own first unit,
    and the first stage's first unit reads the image itself. Where that unit is no plain convolution (a block, a
    depthwise or grouped one), which cannot lift an image to a width, the entry is a convolution in the stage's style.
    """

    def requires(self, top_down: TopDown) -> None:
        assert all(has_upsampling(top_down, s) for s in top_down.stages[1:]), "ReplaceDownsampling has not run"

    def apply(self, top_down: TopDown) -> None:
        for i, stage in enumerate(top_down.stages):
            assert stage.image is not None
            if i == 0 and stage.units and not top_down.bottom_up.stem and _is_plain(top_down, stage.units[0]):
                continue
            after = stage.arrival or stage.image
            with stage.graph.inserting_before(after.next):
                stage.entry = _add_entry(top_down, i)
            if i == 0:
                stage.redirect(stage.image, stage.entry, keep=_first_reader(stage))

    def ensures(self, top_down: TopDown) -> None:
        for stage in top_down.stages:
            assert stage.image is not None and stage.image.users, f"stage {stage.key} does not see the image"


def _first_reader(stage: TopDownStage) -> set[fx.Node]:
    """The entry's own nodes that read the image, and the sizes that it reads with them: all up to the entry."""
    assert stage.image is not None
    before = set(itertools.takewhile(lambda node: node is not stage.entry, stage.graph.nodes))
    return {node for node in stage.image.users if node in before or node is stage.entry}


def _add_entry(top_down: TopDown, index: int) -> fx.Node:
    stage = top_down.stages[index]
    first = _first_unit(top_down, index)
    if top_down.bottom_up.stem:
        return _copy_units(top_down, stage, top_down.bottom_up.stem)
    if _is_plain(top_down, first):
        return _copy_units(top_down, stage, [first])
    return _make_entry(top_down, stage, first)


def _is_plain(top_down: TopDown, unit: Unit) -> bool:
    """Whether a unit can read an image: an ungrouped convolution with its norm and activation."""
    return unit.kind is UnitKind.CONV and all(conv.groups == 1 for conv in _convolutions(top_down, unit))


def _convolutions(top_down: TopDown, unit: Unit) -> list[nn.Conv2d]:
    modules = [top_down.bottom_up.layer(n) for n in unit.nodes if top_down.bottom_up.kind(n) is Kind.CONV]
    return [module for module in modules if isinstance(module, nn.Conv2d)]


def _make_entry(top_down: TopDown, stage: TopDownStage, first: Unit) -> fx.Node:
    """A convolution with the unit's first spatial kernel, in the stage's style; bare where a norm is still to come."""
    assert stage.image is not None
    style = style_of(top_down, stage)
    if style.pre_activation:
        style = Style(style.conv, (), (), pre_activation=False)
    kernels = [max(conv.kernel_size) for conv in _convolutions(top_down, first)]
    kernel = next((k for k in kernels if k > 1), 1)
    path = f"entry.{stage.key}"
    return add_layers(top_down, stage, style, path, stage.image, kernel + 1 - kernel % 2, stage.width)[-1]


def _copy_units(top_down: TopDown, stage: TopDownStage, units: list[Unit]) -> fx.Node:
    """Copy units at stride 1, reading the image; what they end in gets the stage's width."""
    assert stage.image is not None
    convolutions = [n for unit in units for n in unit.nodes if top_down.bottom_up.kind(n) is Kind.CONV]
    path = f"entry.{stage.key}"
    left_out = _left_out(top_down, [n for unit in units for n in unit.nodes])
    copies: dict[fx.Node, fx.Node] = {units[0].input: stage.image}
    homes: list[str] = []  # of norms that are written out
    for unit in units:
        copies.setdefault(unit.input, copies[previous.output] if (previous := _before(units, unit)) else stage.image)
        norm: tuple[fx.Node, ...] = ()
        for at, source in enumerate(unit.nodes):
            if source not in norm and (norm := written_norm(unit.nodes, at)):
                homes.append(_free_name(f"{path}.norm", [*top_down.layers, *homes]))
            if facts(source).pads_for:
                copies[source] = stage.graph.call_function(F.pad, (copies[source.all_input_nodes[0]],))
                noted(copies[source], Plan(path, source=source))
                continue
            if source in left_out:
                copies[source] = copies[next(n for n in source.all_input_nodes if facts(n).carries)]
                continue
            name = _name(top_down, source, path, homes)
            if source in convolutions and source.op == "call_function":
                copies[source] = _add_convolution(top_down, stage, source, name, copies[source.all_input_nodes[0]])
            else:
                home = homes[-1] if source in norm else ""
                copies[source] = add_like(top_down, stage, source, name, copies, path, home)
            if source.op == "call_module":
                top_down.layers[name].source = str(source.target)
            if source in convolutions:
                layer, own = top_down.layers[name], top_down.layers.get(top_down.own_path(str(source.target)))
                layer.changes.update(own.changes if own else {})
                copy = stage.copies.get(unit, {}).get(source)
                kernel = plan(copy).kernel_size if copy is not None else None
                layer.changes.update({"kernel_size": kernel} if kernel else {})
                same_size(layer)
                plan(copies[source]).wanted = facts(source).width
                padding = facts(source).padded_by
                if padding is not None and padding in copies:
                    write_padding(top_down, copies[padding], amounts_for(top_down, copies[source], padding))
                    layer.changes["padding"] = (0, 0)
    plan(copies[units[-1].output]).total = stage.width
    return in_order(stage.graph, copies[units[-1].output], 1)


def _add_convolution(top_down: TopDown, stage: TopDownStage, source: fx.Node, path: str, value: fx.Node) -> fx.Node:
    """A layer like a convolution that is a function: its kernel, a parameter or computed, is not for other shapes."""
    layer = top_down.bottom_up.layer(source)
    assert layer is not None, f"{source} has no kernel"
    top_down.layers[path] = Layer(layer)
    node = stage.graph.call_module(path, (value,))
    noted(node, Plan(path.rpartition(".")[0], source=source))
    return node


def _left_out(top_down: TopDown, nodes: list[fx.Node]) -> set[fx.Node]:
    """What makes a map smaller, pads or drops, and the steps that lead to nothing else, as in a space-to-depth."""
    found: set[fx.Node] = set()
    ending: set[fx.Node] = set()  # what is left out, and what leads to nothing else
    for node in reversed(nodes):
        kind, readers = top_down.bottom_up.kind(node), [user for user in node.users if facts(user).carries]
        is_step = bool(readers) and ending.issuperset(readers)
        moves = pixels_added(top_down.bottom_up, node) is not None or kind in _LEFT_OUT
        if (moves and not facts(node).pads_for) or (is_step and facts(node).size is None):
            found.add(node)
        if node in found and (kind is not Kind.IDENTITY or is_step):
            ending.add(node)
    return found


def _before(units: list[Unit], unit: Unit) -> Unit | None:
    at = units.index(unit)
    return units[at - 1] if at else None


def _name(top_down: TopDown, source: fx.Node, path: str, homes: list[str]) -> str:
    """`entry.16.conv`, `.norm`, `.act`; numbered from the second of a kind on."""
    kinds = {Kind.CONV: "conv", Kind.NORM: "norm", Kind.ACTIVATION: "act"}
    name = kinds.get(top_down.bottom_up.kind(source) or Kind.SIZE, "layer")
    return _free_name(f"{path}.{name}", [*top_down.layers, *homes])


def _free_name(name: str, others: list[str]) -> str:
    taken = sum(other.startswith(name) for other in others)
    return name + (str(taken + 1) if taken else "")


def _first_unit(top_down: TopDown, index: int) -> Unit:
    """The first unit of a stage's body; of a stage without body that of the next one that has one."""
    stages = top_down.stages
    return next(stage.units[0] for stage in [*stages[index:], *reversed(stages[:index])] if stage.units)
