"""The report on all results, and the common look of figures (`style`, `plots`)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the command line; returns the exit status."""
    from benchmarks.show.command import main as run  # here, because experiments import their style from this package

    return run(arguments, prog)
