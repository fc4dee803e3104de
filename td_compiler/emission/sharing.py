"""Units of one kind share one class: what differs in them becomes its parameters, and steps that some of them lack."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from td_compiler.emission.align import step_key
from td_compiler.emission.classes import Draft, SharedClass
from td_compiler.emission.layout import Doc, Join, flat
from td_compiler.emission.roles import Role, role_of
from td_compiler.emission.runs import in_parts
from td_compiler.emission.template import Template
from td_compiler.emission.unify import Mismatch
from td_compiler.graph.names import camel_case

__all__ = ["Sharer"]

_ALIKE = 0.34  # of two variants' steps and layers


class Sharer:
    """Makes the classes of units.

    Args:
        taken: names that no class may have; those that are given are added.
    """

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._defaults: dict[str, dict[str, Any]] = {}
        self._roles: dict[str, Role] = {}

    def share(self, drafts: Iterable[Draft]) -> list[SharedClass]:
        """One class for every kind of unit, in order of first use; more where they have little in common."""
        groups: dict[tuple[str, object], list[Draft]] = {}
        for draft in _in_parts(list(drafts)):
            groups.setdefault((draft.unit.base, draft.structure()), []).append(draft)
        kinds: dict[str, list[list[Draft]]] = {}
        for (base, _), members in groups.items():
            kinds.setdefault(base, []).append(members)
        shared = []
        for base, variants in kinds.items():
            clusters = self._clusters(variants)
            for i, made in enumerate(clusters):
                made.name = self._name(base, made, clusters[:i])
                self._taken.add(made.name)
                self._defaults[made.name] = made.defaults
                made.instances = {path: _named(doc, made.name) for path, doc in made.instances.items()}
                layers = [d.doc for d in made.declarations if not d.condition or made.base != "nn.Module"]
                role = role_of(base, layers, made.statements, made.arguments, self._roles, self._defaults)
                self._roles[made.name], made.summary = role, role.sentence
                shared.append(made)
        return shared

    def _clusters(self, variants: list[list[Draft]]) -> list[SharedClass]:
        """The variants in as few classes as they fit in."""
        whole = self._unite(variants)
        if whole is not None:
            return [whole]
        clusters: list[tuple[list[list[Draft]], SharedClass]] = []
        for variant in sorted(variants, key=lambda members: -len(members)):
            for i, (together, _) in enumerate(clusters):
                united = self._unite([*together, variant])
                if united is not None:
                    clusters[i] = [*together, variant], united
                    break
            else:
                alone = self._unite([variant])
                assert alone is not None, f"{variant[0].unit.path}: one variant has no template"
                clusters.append(([variant], alone))
        return [made for _, made in clusters]

    def _unite(self, variants: list[list[Draft]]) -> SharedClass | None:
        if len(variants) > 1 and not _are_alike(variants):
            return None
        try:
            made = Template(variants, self._defaults).fill()
        except Mismatch:
            return None
        return made

    def _name(self, base: str, made: SharedClass, others: Sequence[SharedClass]) -> str:
        """A name that tells what a class has and the other ones of its kind have not."""
        candidates = [base]
        for other in others:
            own, its = ([d.name for d in each.declarations if d.name.isidentifier()] for each in (made, other))
            candidates += [f"{base}With{camel_case(name)}" for name in own if name not in its]
            if "image" in made.arguments and "image" not in other.arguments:
                candidates.append(f"Growing{base}")
            candidates += [f"{base}Without{camel_case(name)}" for name in its if name not in own]
            first, its_first = _first_called(made), _first_called(other)
            if first and first != its_first:
                candidates.append(f"{camel_case(first)}First{base}")
            if len(made.declarations) < len(other.declarations):
                candidates.append(f"Small{base}")
            if len(made.arguments) < len(other.arguments):
                grows = "image" in other.arguments and "image" not in made.arguments
                candidates.append(f"{'Plain' if grows else 'Single'}{base}")
        place = made.drafts[0].unit.path.split(".")
        candidates += [f"{camel_case(name)}{base}" for name in reversed(place) if name.isidentifier()]
        candidates += [f"{base}{i}" for i in range(2, len(self._taken) + 3)]
        return next(name for name in candidates if name not in self._taken and name.isidentifier())


def _first_called(made: SharedClass) -> str:
    """The attribute that a forward calls first."""
    text = "\n".join("    " * statement.level + statement.prefix + flat(statement.doc) for statement in made.statements)
    tree = ast.parse(f"def forward():\n{textwrap.indent(text, '    ')}") if text else ast.Module([], [])
    return next(_calls_in_order(tree), "")


def _calls_in_order(node: ast.AST) -> Iterator[str]:
    """The attributes of `self` that are called, in the order in which they run."""
    for child in ast.iter_child_nodes(node):
        yield from _calls_in_order(child)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "self":
        yield node.func.attr


def _in_parts(drafts: list[Draft]) -> list[Draft]:
    """The drafts, kind by kind with the same parts of Sequentials where some of a kind interrupt one."""
    made = list(drafts)
    for base in dict.fromkeys(draft.unit.base for draft in drafts):
        places = [i for i, draft in enumerate(drafts) if draft.unit.base == base and draft.body is not None]
        bodies = [body for i in places if (body := drafts[i].body) is not None]
        if len({tuple(map(step_key, body.steps)) for body in bodies}) > 1:
            for i, body in zip(places, in_parts(bodies, [drafts[i].tree for i in places]), strict=True):
                made[i] = replace(drafts[i], body=body)
    return made


def _are_alike(variants: list[list[Draft]]) -> bool:
    keys = [_keys(members[0]) for members in variants]
    first = max(keys, key=len)
    return all(
        SequenceMatcher(None, first, other, autojunk=False).ratio() >= _ALIKE for other in keys if other is not first
    )


def _keys(draft: Draft) -> list[str]:
    return [step_key(step) for step in draft.body.steps] if draft.body else [d.name for d in draft.declarations]


def _named(doc: Doc, name: str) -> Doc:
    assert isinstance(doc, Join)
    return Join((name, *doc.parts[1:]))
