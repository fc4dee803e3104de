"""A unit as a class of its own would be written, and the class that units of one kind share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from td_compiler.emission.align import Body, step_key
from td_compiler.emission.layout import Doc, Number, Statement, flat, substitute
from td_compiler.emission.tree import Tree, is_numbered
from td_compiler.emission.units import Unit

__all__ = ["Declaration", "Draft", "SharedClass"]


@dataclass(frozen=True)
class Declaration:
    """A line of `__init__`: a child module, parameter or buffer by name, and the expression that makes it.

    One of the kind `call` is the expression alone.
    `condition`: when it is there; "" for always.
    """

    name: str
    kind: str
    doc: Doc
    condition: str = ""


@dataclass(frozen=True)
class Draft:
    """One unit as a class of its own would be written, every number in place.

    Attributes:
        body: its steps; None where it only holds parameters and layers for others.
        tree: the modules below it.
        lead: statements that stand before its steps.
    """

    unit: Unit
    declarations: tuple[Declaration, ...]
    body: Body | None
    tree: Tree
    lead: tuple[Statement, ...] = ()

    def structure(self) -> object:
        """What units of one variant have in common: everything but the numbers."""
        declared = tuple((d.name, d.kind, _blank(d.doc)) for d in self.declarations)
        if self.body is None:
            return declared
        places: dict[fx.Node, str] = dict(self.body.arguments)
        stated = []
        for i, step in enumerate(self.body.steps):
            stated.append((step_key(step), tuple(places[node] for node in step.inputs)))
            places[step.node] = f"%{i}"
        return declared, tuple(self.unit.arguments.values()), tuple(stated), places[self.body.result]

    @property
    def docs(self) -> list[Doc]:
        """All its expressions, in order."""
        return [d.doc for d in self.declarations] + [step.doc for step in (self.body.steps if self.body else ())]


@dataclass
class SharedClass:
    """A class for units of one kind.

    Attributes:
        drafts: the units.
        base: the class that it extends.
        summary: what it does, in a sentence.
        declarations, statements: the lines of `__init__` and of the forward; no statements where the base has one.
        arguments: what the forward takes, and whether it may be left out.
        parameters: name and type, with a default where there is one, of what `__init__` takes.
        stored: attributes that the forward reads, and what they are set to.
        instances: the constructor call of every unit, by path.
        defaults: what parameters are where a call does not say.
    """

    name: str
    drafts: list[Draft]
    base: str = "nn.Module"
    summary: str = ""
    declarations: list[Declaration] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    instances: dict[str, Doc] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        """Whether it is a Sequential whose layers have the numbers that it gives them for names."""
        names = ([declaration.name for declaration in draft.declarations] for draft in self.drafts)
        return self.base == "nn.Sequential" and all(map(is_numbered, names))


def _blank(doc: Doc) -> str:
    return flat(substitute(doc, lambda atom: "_" if isinstance(atom, Number) else atom))
