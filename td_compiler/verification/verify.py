"""`verify`: is one top-down network what the method says? Named checks, each with a reason, in words."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from td_compiler.capture.skeleton import unwrapped
from td_compiler.convert import check_source, reverse
from td_compiler.errors import Breakdown, ConversionError
from td_compiler.network.base import TopDownNet
from td_compiler.options import Options
from td_compiler.surroundings import neutral_surroundings
from td_compiler.verification import checks, fresh
from td_compiler.verification.round_trip import round_trip
from td_compiler.verification.subject import Skipped, Subject, Violation

__all__ = ["Check", "Outcome", "Verification", "marks", "verify"]

# A property in words, and what looks at it: it returns what it saw, raises `Violation` where the property does not
# hold, and `Skipped` where it cannot tell. Any other exception is a failed check.
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
    ("emitted source loads strictly", checks.emitted_state),
    ("emitted source computes the same bits", checks.emitted_bits),
    ("made afresh from it, a network trains", fresh.trains),
    ("made afresh, it is drawn as the source is", fresh.drawn_alike),
    ("made afresh, it takes other classes", fresh.other_classes),
)
_CONVERTS = "the network converts"
_UNTOUCHED = "the source is untouched"

Outcome = Literal["passed", "failed", "not looked at"]


@dataclass(frozen=True)
class Check:
    """One property that a top-down network must have.

    Attributes:
        name: the property, in words.
        outcome: whether it holds, or that it could not be looked at, such as values on the meta device.
        detail: what was looked at and seen, or why the check failed or could not be made.
    """

    name: str
    outcome: Outcome
    detail: str

    @property
    def passed(self) -> bool:
        """Whether the property was looked at and holds."""
        return self.outcome == "passed"

    @property
    def failed(self) -> bool:
        """Whether the property was looked at and does not hold."""
        return self.outcome == "failed"

    @property
    def skipped(self) -> bool:
        """Whether the property could not be looked at."""
        return self.outcome == "not looked at"

    def __str__(self) -> str:
        mark = marks(getattr(sys.stdout, "encoding", None))[self.outcome]
        return f"{mark} {self.name}: {'not looked at: ' if self.skipped else ''}{self.detail}"


def marks(encoding: str | None) -> dict[Outcome, str]:
    """What stands in front of a check: a tick, a cross or a dash; in words where an encoding has no such signs."""
    try:
        "\u2713\u2717".encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return {"passed": "ok", "failed": "FAILED", "not looked at": "-"}
    return {"passed": "\u2713", "failed": "\u2717", "not looked at": "-"}


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
        """Whether no check failed, and there is one that passed."""
        return not self.failures and any(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.failed)

    @property
    def heading(self) -> str:
        """How many checks passed, in words."""
        passed, skipped = (sum(getattr(check, what) for check in self.checks) for what in ("passed", "skipped"))
        rest = f", {skipped} not looked at" if skipped else ""
        return f"{self.source}: {passed} of {len(self.checks)} checks passed{rest}"

    def __str__(self) -> str:
        return "\n".join([self.heading, *map(str, self.checks)])


@neutral_surroundings()
def verify(
    model: nn.Module,
    td: TopDownNet | None = None,
    *,
    progress: Callable[[str], object] | None = None,
    **options: Any,
) -> Verification:
    """Check one network and its top-down network against the method (SPEC 1 and 2), property by property.

    Takes seconds: shapes are run on the meta device, values at a small image size where the source takes one. Neither
    network is changed. What cannot be looked at, such as values of models on the meta device, is said to be so.

    Args:
        model: the source network.
        td: its top-down network, as `reverse` made it; converted here if None, which also checks that the source stays
            as it is.
        progress: called with the name of every check before it runs.
        options: those of :func:`td_compiler.reverse`; with `td` given, those that it was made with where they differ
            from what its report says.

    Raises:
        ConversionError: if the conversion is refused, an option is unknown or `td` is no top-down network. Whatever
            else goes wrong is a failed check.
    """
    check_source(model)
    tell = progress or (lambda name: None)
    source = type(model).__name__
    given: object = td
    if td is not None:
        if not isinstance(given, TopDownNet):
            kind = type(given).__name__
            raise ConversionError(
                f"td is a {kind}, not a top-down network that reverse made: leave it out, or reverse."
            )
        known = Options(**{**_options_of(td), **options})
        untouched = Check(_UNTOUCHED, "not looked at", "it was converted before")
    else:
        known = Options(**options)
        tell(_CONVERTS)
        before = checks.fingerprint(model)
        try:
            td = reverse(model, **options)
        except Breakdown as error:
            return Verification(source, (Check(_CONVERTS, "failed", str(error)),))
        except ConversionError:
            raise
        except Exception as error:
            return Verification(source, (Check(_CONVERTS, "failed", checks.describe(error)),))
        untouched = _run(_UNTOUCHED, lambda: checks.untouched(before, checks.fingerprint(model)))
    try:
        subject = Subject(unwrapped(model), copy.deepcopy(td), known)
    except Exception as error:
        return Verification(source, (untouched, Check("the network copies", "failed", checks.describe(error))), td)
    return Verification(source, (*_look(subject, tell), untouched), td)


def _options_of(td: TopDownNet) -> dict[str, Any]:
    """The options that a network was made with, as its report has them."""
    known = td.report.options
    return {field.name: getattr(known, field.name) for field in dataclasses.fields(known)} if known is not None else {}


def _look(subject: Subject, tell: Callable[[str], object]) -> Iterator[Check]:
    for name, check in _CHECKS:
        tell(name)
        yield _run(name, lambda check=check: check(subject))  # type: ignore[misc]


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "passed", check())
    except Skipped as reason:
        return Check(name, "not looked at", str(reason).removeprefix("not looked at: "))
    except Violation as reason:
        return Check(name, "failed", str(reason))
    except (Exception, SystemExit) as error:
        return Check(name, "failed", checks.describe(error))
