"""Units of the same structure share one class; the numbers in which they differ become its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from td_compiler.emission.layout import Doc, Number, Statement, atoms, call, flat, substitute
from td_compiler.emission.parameters import POSITIONAL, Hole, find_parameters
from td_compiler.emission.units import Unit

__all__ = ["Declaration", "Draft", "SharedClass", "share"]


@dataclass(frozen=True)
class Declaration:
    """A line of `__init__`: a child module, parameter or buffer by name, and the expression that makes it.

    One of the kind `call` is the expression alone.
    """

    name: str
    kind: str
    doc: Doc


@dataclass(frozen=True)
class Draft:
    """One unit as a class of its own would be written, every number in place."""

    unit: Unit
    declarations: tuple[Declaration, ...]
    statements: tuple[Statement, ...]

    @property
    def structure(self) -> object:
        """What units that share a class have in common: everything but the numbers."""
        declared = tuple((d.name, d.kind, _blank(d.doc)) for d in self.declarations)
        stated = tuple((s.level, s.prefix, _blank(s.doc)) for s in self.statements)
        return self.unit.base, tuple(self.unit.arguments.values()), declared, stated

    @property
    def numbers(self) -> list[tuple[Number, bool]]:
        """All numbers, those of `__init__` first, and whether each stands in the forward."""
        declared = [(atom, False) for d in self.declarations for atom in atoms(d.doc) if isinstance(atom, Number)]
        return declared + [(atom, True) for s in self.statements for atom in atoms(s.doc) if isinstance(atom, Number)]


@dataclass
class SharedClass:
    """A class for units of one structure.

    Attributes:
        drafts: the units.
        declarations, statements: the lines of `__init__` and of the forward.
        parameters: name and type of what `__init__` takes.
        stored: parameters that the forward reads.
        instances: the constructor call of every unit, by path.
    """

    name: str
    drafts: list[Draft]
    declarations: list[Declaration] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    instances: dict[str, Doc] = field(default_factory=dict)


def share(drafts: Iterable[Draft], taken: set[str]) -> list[SharedClass]:
    """One class per structure, in order of first use; `taken` are names that no class may have."""
    groups: dict[object, list[Draft]] = {}
    for draft in drafts:
        groups.setdefault(draft.structure, []).append(draft)
    variants: dict[str, int] = {}
    for members in groups.values():
        variants[members[0].unit.base] = variants.get(members[0].unit.base, 0) + 1
    taken = set(taken)
    shared = []
    for members in groups.values():
        unit = members[0].unit
        grows = variants[unit.base] > 1 and "image" in unit.arguments.values()
        name = _free(f"{unit.base}Up" if grows else unit.base, taken)
        taken.add(name)
        shared.append(_parametrise(SharedClass(name, members)))
    return shared


def _free(name: str, taken: set[str]) -> str:
    candidates = [name, *(f"{name}{i}" for i in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)


def _blank(doc: Doc) -> str:
    return flat(substitute(doc, lambda atom: "_" if isinstance(atom, Number) else atom))


def _parametrise(shared: SharedClass) -> SharedClass:
    """Fill in what the units' drafts have in common, with parameters where their numbers differ."""
    columns = zip(*(draft.numbers for draft in shared.drafts), strict=True)
    holes = [
        Hole(
            units[0][0].role,
            tuple(number.value for number, _ in units),
            units[0][1],
            tuple(number.argument for number, _ in units),
        )
        for units in columns
    ]
    parameters = find_parameters(holes, {d.name for d in shared.drafts[0].declarations})
    fillers = iter([parameters.expression(hole) for hole in holes])

    def fill(doc: Doc) -> Doc:
        return substitute(doc, lambda atom: next(fillers) if isinstance(atom, Number) else atom)

    first = shared.drafts[0]
    shared.declarations = [Declaration(d.name, d.kind, fill(d.doc)) for d in first.declarations]
    shared.statements = [Statement(s.prefix, fill(s.doc), s.level) for s in first.statements]
    shared.parameters = {name: type(values[0]).__name__ for name, values in parameters.values.items()}
    shared.stored = parameters.stored
    for i, draft in enumerate(shared.drafts):
        given: dict[str, Doc] = {
            name: Number(values[i], name, parameters.arguments[name][i]) for name, values in parameters.values.items()
        }
        places = [name for name in given if name in POSITIONAL or len(given) == 1]
        one = call(shared.name, *(given.pop(name) for name in places), **given)
        shared.instances[draft.unit.path] = one
    return shared
