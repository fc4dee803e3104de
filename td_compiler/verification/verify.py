"""`verify`: is one top-down network what the method says? Named checks, each with a reason, in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from td_compiler.convert import reverse
from td_compiler.errors import ConversionError
from td_compiler.network.base import TopDownNet
from td_compiler.options import Options
from td_compiler.verification import checks
from td_compiler.verification.checks import Skipped, Violation
from td_compiler.verification.round_trip import round_trip
from td_compiler.verification.subject import Subject

__all__ = ["Check", "Verification", "verify"]

_CHECKS: tuple[tuple[str, Callable[[Subject], str]], ...] = (
    ("the output has the right shape", checks.output_shape),
    ("every trainable parameter reaches the loss", checks.gradients),
    ("one pyramid level per scale", checks.pyramid),
    ("stage maps grow from coarse to fine", checks.stage_maps),
    ("stages have the widths of the arrangement", checks.widths),
    ("layers keep their settings", checks.settings),
    ("layers and parameters keep their names", checks.names),
    ("weights are kept and finite", checks.weights),
    ("its parts, put together again, are the source", round_trip),
    ("emitted source loads strictly and computes the same bits", checks.emission),
)
_CONVERTS = "the network converts"
_UNTOUCHED = "the source is untouched"


@dataclass(frozen=True)
class Check:
    """One property that a top-down network must have.

    Attributes:
        name: the property, in words.
        passed: whether it holds; true also where it could not be looked at.
        detail: what was seen, or why the check failed or was left out.
        skipped: whether it could not be looked at, such as values on the meta device.
    """

    name: str
    passed: bool
    detail: str
    skipped: bool = False

    @property
    def mark(self) -> str:
        """A tick, a cross or, for what was left out, a dash."""
        return "-" if self.skipped else "✓" if self.passed else "✗"

    def __str__(self) -> str:
        return f"{self.mark} {self.name}: {self.detail}"


@dataclass(frozen=True)
class Verification:
    """The checks of one network.

    Attributes:
        source: the class name of the source network.
        checks: in the order in which they ran.
        td: the top-down network, None if the conversion broke down.
    """

    source: str
    checks: tuple[Check, ...]
    td: TopDownNet | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def heading(self) -> str:
        """How many checks passed, in words."""
        skipped = sum(check.skipped for check in self.checks)
        passed = len(self.checks) - len(self.failures) - skipped
        return f"{self.source}: {passed} of {len(self.checks)} checks passed" + (
            f", {skipped} left out" if skipped else ""
        )

    def __str__(self) -> str:
        return "\n".join([self.heading, *map(str, self.checks)])


def verify(model: nn.Module, td: TopDownNet | None = None, **options: Any) -> Verification:
    """Check one network and its top-down network against the method (SPEC 1 and 2), property by property.

    Takes seconds: shapes are run on the meta device, values at a small image size where the source takes one. Neither
    network is changed. Models on the meta device work too; what needs values is then left out, and said to be.

    Args:
        model: the source network.
        td: its top-down network; converted here if None, which also checks that the source stays as it is.
        options: those of :func:`td_compiler.reverse`; with `td` given, those that it was made with.

    Raises:
        ConversionError: if the conversion is refused or an option is unknown. Whatever else goes wrong is a failed
            check.
    """
    known = Options(**options)
    results: list[Check] = []
    if td is None:
        before = checks.fingerprint(model) if isinstance(model, nn.Module) else {}
        try:
            td = reverse(model, **options)
        except ConversionError:
            raise
        except Exception as error:
            return Verification(type(model).__name__, (Check(_CONVERTS, False, checks.describe(error)),))
        results.append(_run(_UNTOUCHED, lambda: checks.untouched(before, checks.fingerprint(model))))
    else:
        results.append(Check(_UNTOUCHED, True, "not looked at: it was converted before", skipped=True))
    try:
        subject = Subject(model, copy.deepcopy(td), known)
    except Exception as error:
        return Verification(type(model).__name__, (*results, Check("the network copies", False, str(error))), td)
    results[:0] = [_run(name, lambda check=check: check(subject)) for name, check in _CHECKS]  # type: ignore[misc]
    return Verification(type(model).__name__, tuple(results), td)


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except Skipped as reason:
        return Check(name, True, str(reason), skipped=True)
    except Violation as reason:
        return Check(name, False, str(reason))
    except Exception as error:
        return Check(name, False, checks.describe(error))
