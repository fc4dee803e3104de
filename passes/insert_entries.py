"""Lift the image to the width of every stage (SPEC 2.1, 2.2)."""

from __future__ import annotations

from torch import fx

from td_compiler.conversion import Conversion, Pass
from td_compiler.operators import Kind
from td_compiler.passes.replace_downsampling import same_size
from td_compiler.stages import TopDownStage, Unit
from td_compiler.style import add_like

__all__ = ["InsertEntries"]


class InsertEntries(Pass):
    """Every stage gets an entry, a unit that reads the pyramid's image of its scale.

    In a network with stem it is a copy of the stem at stride 1; in one without a copy of the stage's own first unit,
    and the first stage's first unit reads the image itself.
    """

    def requires(self, conversion: Conversion) -> None:
        assert all(s.arrival is not None for s in conversion.stages[1:]), "ReplaceDownsampling has not run"

    def apply(self, conversion: Conversion) -> None:
        for i, stage in enumerate(conversion.stages):
            assert stage.image is not None
            if i == 0 and stage.units and not conversion.found.stem:
                continue
            after = stage.arrival or stage.image
            with stage.graph.inserting_before(after.next):
                stage.entry = _add_entry(conversion, i)
            if i == 0:
                stage.redirect(stage.image, stage.entry, keep=_first_reader(stage))

    def ensures(self, conversion: Conversion) -> None:
        for stage in conversion.stages:
            assert stage.image is not None and stage.image.users, f"stage {stage.key} does not see the image"


def _first_reader(stage: TopDownStage) -> set[fx.Node]:
    """The entry's own nodes that read the image."""
    assert stage.image is not None
    return {node for node in stage.image.users if node.meta.get("unit", "").startswith("entry.")}


def _add_entry(conversion: Conversion, index: int) -> fx.Node:
    stage = conversion.stages[index]
    assert stage.image is not None
    units = conversion.found.stem or [_first_unit(conversion, index)]
    sources = [n for unit in units for n in unit.nodes]
    sources = [n for n in sources if conversion.kind(n) in {Kind.CONV, Kind.NORM, Kind.ACTIVATION}]
    last_conv = [n for n in sources if conversion.kind(n) is Kind.CONV][-1]
    value = stage.image
    path = f"entry.{stage.key}"
    for source in sources:
        name = _name(conversion, source, path)
        value = add_like(conversion, stage, source, name, value, path)
        if source.op == "call_module":
            conversion.layers[name].source = str(source.target)
        if conversion.kind(source) is Kind.CONV:
            layer = conversion.layers[name]
            own = conversion.layers.get(str(source.target))
            layer.changes.update(own.changes if own else {})
            same_size(layer)
            value.meta["wanted"] = stage.width if source is last_conv else source.meta["value"].shape[1]
    return value


def _name(conversion: Conversion, source: fx.Node, path: str) -> str:
    """`entry.16.conv`, `.norm`, `.act`; numbered from the second of a kind on."""
    kinds = {Kind.CONV: "conv", Kind.NORM: "norm", Kind.ACTIVATION: "act"}
    name = kinds[conversion.kind(source)]  # type: ignore[index]
    taken = sum(other.startswith(f"{path}.{name}") for other in conversion.layers)
    return f"{path}.{name}" + (str(taken + 1) if taken else "")


def _first_unit(conversion: Conversion, index: int) -> Unit:
    """The first unit of a stage's body; of a stage without body that of the next one that has one."""
    stages = conversion.stages
    return next(stage.units[0] for stage in [*stages[index:], *reversed(stages[:index])] if stage.units)
