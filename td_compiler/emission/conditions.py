"""What tells the variants of a block apart: in `__init__` numbers or flags, in the forward what `__init__` set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from td_compiler.emission.unify import MISSING

__all__ = ["Conditions", "opposite"]


class Conditions:
    """Conditions for sets of variants.

    Attributes:
        flags: parameters that are added, and their value for every instance.
        stored: attributes for the forward, and what `__init__` sets them to.
        count: how many conditions there are, none of which follows from another.

    Args:
        variants: of every instance.
        parameters: values of every parameter, an instance each.
        known: what the forward knows already: condition -> variants.
        taken: names that the class has for something else.
        kept: the parameters that the class keeps under their names for the forward.
    """

    def __init__(
        self,
        variants: Sequence[int],
        parameters: Mapping[str, tuple[Any, ...]],
        known: Mapping[str, frozenset[int]],
        taken: Sequence[str],
        kept: Sequence[str],
    ) -> None:
        self.flags: dict[str, tuple[Any, ...]] = {}
        self.stored: dict[str, str] = {}
        self._variants = variants
        self._all = frozenset(variants)
        self._parameters = parameters
        self._taken = {*taken, *kept}
        self._kept = set(kept)
        self._declared: dict[str, str] = {}
        self._at_start: dict[frozenset[int], str] = {}
        self._at_run: dict[frozenset[int], str] = {}
        for condition, mask in known.items():
            self._know(mask, condition)
        self._own: set[frozenset[int]] = set(known.values())

    @property
    def count(self) -> int:
        """How many conditions there are, none of which is another's opposite."""
        return len(self._own)

    def of(self, name: str) -> str:
        """The condition in `__init__` for a declaration."""
        return self._declared[name]

    def declare(self, name: str, mask: frozenset[int], *, attribute: bool, word: str = "") -> None:
        """Note a declaration of some variants; with `attribute` the others have None there."""
        self._declared[name] = self._start(mask, word or name)
        if attribute and mask not in self._at_run and name.isidentifier():
            self._know(mask, f"self.{name} is not None")

    def run(self, mask: frozenset[int], attribute: str, purpose: str) -> str:
        """The condition in the forward for a step of some variants; `attribute`: one that those alone have."""
        if attribute.isidentifier():
            return f"self.{attribute} is not None"
        if mask in self._at_run:
            return self._at_run[mask]
        for (one, first), (other, second) in combinations(list(self._at_run.items()), 2):
            if one & other == mask:
                self._at_run[mask] = f"{first} and {second}"
                return self._at_run[mask]
        start = self._start(mask, self._free(purpose, attribute=True))
        number = start.removesuffix(" is not None")
        if number != start and number in self._kept:
            self._know(mask, f"self.{start}")
            return self._at_run[mask]
        name = self._free(purpose, attribute=True)
        self.stored[name] = start
        self._know(mask, f"self.{name}")
        return self._at_run[mask]

    def _know(self, mask: frozenset[int], condition: str) -> None:
        self._at_run.setdefault(mask, condition)
        self._at_run.setdefault(self._all - mask, opposite(condition))

    def _start(self, mask: frozenset[int], name: str) -> str:
        """A condition in `__init__`: on numbers where they tell, else a flag."""
        if mask in self._at_start:
            return self._at_start[mask]
        self._own.add(mask)
        inside = [variant in mask for variant in self._variants]
        condition = self._of_numbers(inside)
        if not condition:
            condition = self._free(name if name.isidentifier() else f"with_{name}")
            self.flags[condition] = tuple(inside)
        self._at_start[mask] = condition
        self._at_start[self._all - mask] = opposite(condition)
        return condition

    def _of_numbers(self, inside: Sequence[bool]) -> str:
        for name, values in self._parameters.items():
            if [value is not MISSING for value in values] == list(inside):
                return f"{name} is not None"
        whole = {n: v for n, v in self._parameters.items() if all(type(x) is int for x in v)}
        for (a, ours), (b, theirs) in combinations(whole.items(), 2):
            differ = [x != y for x, y in zip(ours, theirs, strict=True)]
            if differ == list(inside):
                return f"{a} != {b}"
            if not any(d == i for d, i in zip(differ, inside, strict=True)):
                return f"{a} == {b}"
        return ""

    def _free(self, name: str, *, attribute: bool = False) -> str:
        candidates = [
            name,
            f"{name}_first" if attribute else f"with_{name}",
            *(f"{name}{i}" for i in range(2, len(self._taken) + len(self.flags) + 4)),
        ]
        used = {*self.stored, *self._taken} if attribute else {*self.flags, *self.stored, *self._parameters}
        return next(candidate for candidate in candidates if candidate not in used)


def opposite(condition: str) -> str:
    """The condition that holds where another does not."""
    for sign, other in ((" is not None", " is None"), (" != ", " == "), (" == ", " != ")):
        if sign in condition:
            return condition.replace(sign, other)
    return f"not {condition}"
