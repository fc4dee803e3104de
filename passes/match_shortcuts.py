"""Give blocks whose shape now changes a projection, in the network's own manner (SPEC 2.4)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import fx

from td_compiler.graph.checks import has_upsampling
from td_compiler.graph.notes import facts, plan, source_of
from td_compiler.graph.operators import Kind, Width
from td_compiler.graph.states import Pass, TopDown, operator_of
from td_compiler.graph.style import Style, add_layers, add_like, style_of
from td_compiler.graph.units import Projection, TopDownStage, Unit, UnitKind
from td_compiler.passes.nodes import is_depthwise, widened

__all__ = ["MatchShortcuts"]


@dataclass(frozen=True)
class _Shortcut:
    """The short way through a block, of the bottom-up graph.

    Attributes:
        join: the addition at its end.
        side: the join's argument that is the short way.
        chain: the operations of the short way alone, in order; empty for an identity.
        projects: whether a convolution is among them.
    """

    join: fx.Node
    side: fx.Node
    chain: tuple[fx.Node, ...]
    projects: bool


class MatchShortcuts(Pass[TopDown]):
    """Every identity shortcut of a unit that may change shape becomes a projection.

    Those units are the first of every stage and others that read a map of another stage (it arrives with another width
    and size), and the last of all under `head_width`. A projection is modelled on one that the network has elsewhere,
    preferably in a block of the same class: same layers, same names, same place to read from. `SetWidths` takes away
    what turns out not to change shape.
    """

    def requires(self, top_down: TopDown) -> None:
        assert all(stage.width for stage in top_down.stages), "ArrangeFilters has not run"
        grown = [stage.key for stage in top_down.stages if has_upsampling(top_down, stage)]
        assert not grown, f"the map grows already at scale {grown[0]}: a projection would stand behind the upsampling"

    def apply(self, top_down: TopDown) -> None:
        last = top_down.stages[-1]
        for stage in top_down.stages:
            own = {unit.output for unit in stage.units}
            candidates = [unit for unit in stage.units if unit is stage.units[0] or not own.issuperset(unit.inputs)]
            if stage is last and top_down.options.head_width is not None:
                candidates += [unit for unit in stage.units[-1:] if unit not in candidates]
            for unit in stage.units:
                shortcut = _find_shortcut(top_down, unit)
                if shortcut is None:
                    continue
                copies = stage.copies[unit]
                if not shortcut.projects and unit in candidates:
                    for inner in _shortcuts_before(top_down, unit, shortcut):
                        nodes = _add_projection(top_down, stage, unit, inner, copies, None)
                        stage.projections.append(Projection(unit, nodes, copies[inner.join]))
                join = copies[shortcut.join]
                if _pads_up(top_down, stage, unit, shortcut):
                    continue
                if not shortcut.projects and unit in candidates:
                    model = _model_projection(top_down, unit)
                    nodes = _add_projection(top_down, stage, unit, shortcut, copies, model)
                    of_input = unit.inputs.index(shortcut.side) if shortcut.side in unit.inputs else None
                    stage.projections.append(Projection(unit, nodes, join, of_input))
                elif shortcut.projects and _changes_shape(unit):
                    stage.projections.append(Projection(unit, [copies[n] for n in shortcut.chain], join))

    def ensures(self, top_down: TopDown) -> None:
        for stage in top_down.stages:
            stage.graph.lint()


def _pads_up(top_down: TopDown, stage: TopDownStage, unit: Unit, shortcut: _Shortcut) -> bool:
    """Whether a shortcut that is padded with zero channels can stay so: if not, the padding is taken away."""
    pads = [(node, found) for node in shortcut.chain if (found := widened(top_down.bottom_up, node))]
    if not pads:
        return False
    arriving, wanted = _arriving(top_down, stage, unit), _wanted(stage, unit, shortcut.join)
    is_free = all(can_follow for _, (_, can_follow) in pads)
    fits = arriving * facts(shortcut.join).width == wanted * facts(unit.input).width
    is_first = unit is stage.units[0]
    if arriving != wanted and (not is_first or fits or (is_free and arriving < wanted)):
        return True
    for node, (read, _) in pads:
        copies = stage.copies[unit]
        copies[node].replace_all_uses_with(copies[read])
        _erase(stage, unit, copies[node])
        copies[node] = copies[read]
    return not is_first


def _arriving(top_down: TopDown, stage: TopDownStage, unit: Unit) -> int:
    """The width of the map that a unit reads."""
    before = top_down.stages[max(0, top_down.stages.index(stage) - 1)]
    if unit is not stage.units[0]:
        before, last = stage, stage.units[stage.units.index(unit) - 1]
    elif stage.transition == "block" and before.units:
        last = before.units[-1]
    else:
        return stage.width
    return _wanted(before, last, last.output)


def _erase(stage: TopDownStage, unit: Unit, node: fx.Node) -> None:
    """Erase a node that nothing reads, and what only it read."""
    inputs = node.all_input_nodes
    if node in stage.spans[unit]:
        stage.spans[unit].remove(node)
    stage.graph.erase_node(node)
    for before in inputs:
        if not before.users and before.op != "placeholder":
            _erase(stage, unit, before)


def _wanted(stage: TopDownStage, unit: Unit, node: fx.Node) -> int:
    """The width that a map in a block is to have, by the last layer of the block that chooses its own."""
    last = next(n for n in reversed(stage.spans[unit]) if plan(n).wanted and plan(n).source is not None)
    return round(plan(last).wanted * facts(node).width / facts(source_of(last)).width)


def _changes_shape(unit: Unit) -> bool:
    return unit.stride != (1, 1) or unit.width != facts(unit.input).width


def _find_shortcut(top_down: TopDown, unit: Unit) -> _Shortcut | None:
    """The way through a block with the fewest convolutions, if there is one that adds to a longer one."""
    if unit.kind is not UnitKind.BLOCK:
        return None
    found = (_shortcut_to(top_down, unit, join) for join in reversed(unit.nodes))
    return next((shortcut for shortcut in found if shortcut is not None), None)


def _shortcut_to(top_down: TopDown, unit: Unit, join: fx.Node) -> _Shortcut | None:
    """The short way to a join of a block, if it is one of a shortcut."""
    inside = set(unit.nodes)
    row = top_down.bottom_up.row(join)
    maps = [n for n in join.all_input_nodes if n in inside or n in unit.inputs]
    if row is None or row.kind is not Kind.JOIN or row.width is not Width.EQUAL or len(maps) != 2:
        return None
    shapes = [(facts(n).width, facts(n).size) for n in maps]
    if shapes[0] != shapes[1] or _multiplies(join):
        return None
    ways = [_ancestors(node, inside) for node in maps]
    counts = [sum(top_down.bottom_up.kind(n) is Kind.CONV for n in way) for way in ways]
    short = counts.index(min(counts))
    if counts[short] == counts[1 - short] or _choices(top_down, ways[short], join) > 1:
        return None
    chain = tuple(n for n in unit.nodes if n in ways[short] and n not in ways[1 - short])
    projects = any(top_down.bottom_up.kind(n) is Kind.CONV for n in chain)
    read = [{n for node in (side, *way) for n in _read_by(unit, node)} for side, way in zip(maps, ways, strict=True)]
    if projects and not read[short] <= read[1 - short]:
        return None  # a way from another tensor is no shortcut of this one (SPEC 2.13)
    if projects and (not _all_ways_meet(unit, join) or _adds_branch(top_down, unit, maps[1 - short], ways)):
        return None
    return _Shortcut(join, maps[short], chain, projects)


def _shortcuts_before(top_down: TopDown, unit: Unit, last: _Shortcut) -> list[_Shortcut]:
    """The identities on the ways to a block's last shortcut that bring what the block reads to other filters."""
    inside = set(unit.nodes)
    before = _ancestors(last.join, inside) - {last.join}
    found = []
    for join in unit.nodes:
        shortcut = _shortcut_to(top_down, unit, join) if join in before else None
        if shortcut is None or shortcut.projects:
            continue
        long = next(n for n in join.all_input_nodes if n is not shortcut.side and n in inside)
        ways = [_ancestors(node, inside) for node in (shortcut.side, long)]
        if not _choices(top_down, ways[0], join) and _choices(top_down, ways[1], join):
            found.append(shortcut)
    return found


def _read_by(unit: Unit, node: fx.Node) -> set[fx.Node]:
    """What a node is or reads of what its unit reads."""
    return {n for n in (node, *node.all_input_nodes) if n in unit.inputs}


def _adds_branch(top_down: TopDown, unit: Unit, other: fx.Node, ways: list[set[fx.Node]]) -> bool:
    """Whether a join adds one more convolution to a sum of such: branches side by side, none of them a shortcut."""
    row = top_down.bottom_up.row(other)
    is_sum = row is not None and row.kind is Kind.JOIN and row.width is Width.EQUAL and not _multiplies(other)
    return is_sum and len({_depth(top_down, unit, way) for way in ways}) == 1


def _depth(top_down: TopDown, unit: Unit, way: set[fx.Node]) -> int:
    """The most convolutions in a row on a way through a block."""
    depths: dict[fx.Node, int] = {}
    for node in unit.nodes:
        if node in way:
            before = max((depths.get(n, 0) for n in node.all_input_nodes), default=0)
            depths[node] = before + (top_down.bottom_up.kind(node) is Kind.CONV)
    return max(depths.values(), default=0)


def _choices(top_down: TopDown, way: set[fx.Node], join: fx.Node) -> int:
    """How many convolutions of a way to a join choose the map's width: all but the depthwise ones and a gate's."""
    convolutions = [node for node in way if top_down.bottom_up.kind(node) is Kind.CONV]
    of_map = [node for node in convolutions if facts(node).size != (1, 1) or facts(join).size == (1, 1)]
    modules = [top_down.bottom_up.layer(node) for node in of_map]
    return sum(module is None or not is_depthwise(module) for module in modules)


def _all_ways_meet(unit: Unit, join: fx.Node) -> bool:
    """Whether nothing after a join reads what stands before it: else it joins branches of one way through the block."""
    at = unit.nodes.index(join)
    before = {*unit.inputs, *unit.nodes[:at]}
    return not any(n in before for node in unit.nodes[at + 1 :] for n in node.all_input_nodes)


def _multiplies(node: fx.Node) -> bool:
    return "mul" in str(getattr(node.target, "__name__", node.target))


def _ancestors(node: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in inside and current not in found:
            found.add(current)
            stack.extend(current.all_input_nodes)
    return found


def _add_projection(
    top_down: TopDown,
    stage: TopDownStage,
    unit: Unit,
    shortcut: _Shortcut,
    copies: dict[fx.Node, fx.Node],
    model: tuple[Unit, _Shortcut] | None,
) -> list[fx.Node]:
    """Put a projection, like a model's where there is one, into the short way of a block."""
    join, side = copies[shortcut.join], copies[shortcut.side]
    wanted = _wanted(stage, unit, shortcut.join)
    place = join
    if model is not None:
        place = copies[_place(top_down, unit, shortcut.join, model[0], model[1].chain[0])]
    with stage.graph.inserting_before(place):
        if model is not None:
            own = side if shortcut.side in unit.inputs else copies[unit.input]
            nodes = _copy_projection(top_down, stage, unit, copies, own, *model)
        else:
            home = top_down.own_path(unit.path)
            path = f"{home}.projection" if home else f"projection.{stage.key}.{stage.units.index(unit)}"
            taken = sum(other.unit is unit for other in stage.projections)
            path += str(taken + 1) if taken else ""
            nodes = add_layers(top_down, stage, _projection_style(top_down, stage), path, side, 1, wanted)
    for node in nodes:
        plan(node).unit, plan(node).class_name = top_down.own_path(unit.path), unit.class_name
        if _is_convolution(top_down, node):
            plan(node).wanted = wanted
    _replace_argument(join, side, nodes[-1])
    at = stage.spans[unit].index(place)
    stage.spans[unit][at:at] = nodes
    return nodes


def _place(top_down: TopDown, unit: Unit, join: fx.Node, model: Unit, projection: fx.Node) -> fx.Node:
    """The operation of a block before which its projection stands, as it does in the model; the join if in doubt."""
    before = model.nodes[: model.nodes.index(projection)]
    own = unit.nodes[: min(len(before), unit.nodes.index(join))]
    is_alike = [top_down.bottom_up.kind(n) for n in own] == [top_down.bottom_up.kind(n) for n in before]
    return unit.nodes[len(before)] if is_alike else join


def _is_convolution(top_down: TopDown, node: fx.Node) -> bool:
    row = operator_of(top_down, node)
    return row is not None and row.kind is Kind.CONV


def _replace_argument(join: fx.Node, old: fx.Node, new: fx.Node) -> None:
    """Replace one argument of a join, the one that is the short way."""
    args = list(join.args)
    args[max(i for i, arg in enumerate(args) if arg is old)] = new
    join.args = tuple(args)


def _model_projection(top_down: TopDown, unit: Unit) -> tuple[Unit, _Shortcut] | None:
    """A block of the network that projects, of the same class if possible."""
    units = [other for stage in top_down.bottom_up.stages for other in stage.units]
    models = [(other, found) for other in units if (found := _find_shortcut(top_down, other)) and found.projects]
    models.sort(key=lambda model: model[0].class_name != unit.class_name)
    return models[0] if models else None


def _copy_projection(
    top_down: TopDown,
    stage: TopDownStage,
    unit: Unit,
    copies: dict[fx.Node, fx.Node],
    side: fx.Node,
    model: Unit,
    shortcut: _Shortcut,
) -> list[fx.Node]:
    """Copy a projection's convolution, norm and activation, reading from the same place of this block, or `side`."""
    tap = next(n for n in shortcut.chain[0].all_input_nodes if n in model.inputs or n in model.nodes)
    value = side
    if tap in model.nodes:
        at = model.nodes.index(tap)
        kinds = [[top_down.bottom_up.kind(n) for n in nodes[: at + 1]] for nodes in (unit.nodes, model.nodes)]
        if kinds[0] == kinds[1]:
            value = copies[unit.nodes[at]]
    nodes: list[fx.Node] = []
    home = top_down.own_path(unit.path)
    for i, source in enumerate(shortcut.chain):
        if top_down.bottom_up.kind(source) not in {Kind.CONV, Kind.NORM, Kind.ACTIVATION}:
            continue
        name = str(source.target)
        if unit.path and model.path and name.startswith(model.path + "."):
            path = home + name[len(model.path) :]
        else:
            paths = (f"projection.{stage.key}.{n}" for n in itertools.count(i))
            path = next(path for path in paths if path not in top_down.layers and not _is_taken(stage, path))
        beside = "" if home else path  # parameters of functions have no module of the block to stand in
        value = add_like(top_down, stage, source, path, {source.all_input_nodes[0]: value}, home, beside)
        nodes.append(value)
    return nodes


def _is_taken(stage: TopDownStage, path: str) -> bool:
    """Whether parameters of functions stand under a path."""
    return any(str(node.target).startswith(f"{path}.") for node in stage.graph.find_nodes(op="get_attr"))


def _projection_style(top_down: TopDown, stage: TopDownStage) -> Style:
    """A bare convolution before a norm to come, convolution and norm in a post-activation network."""
    style = style_of(top_down, stage)
    return Style(style.conv, () if style.pre_activation else style.norm, (), pre_activation=False)
