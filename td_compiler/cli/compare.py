"""`tdc compare`: the experiment of that name, for one network of one's own; needs the extra `bench`."""

from __future__ import annotations

import typer

from td_compiler.errors import ConversionError

__all__ = ["compare", "register"]


def register(app: typer.Typer) -> None:
    """Add the command, whose options are the experiment's own: they are read where it is."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command("compare", context_settings=settings, add_help_option=False)(compare)


def compare(context: typer.Context) -> int:
    """Is the top-down network of a network better, and at what? Trains both and measures (extra `bench`).

    Raises:
        ConversionError: if the experiments' libraries are not installed.
    """
    from td_compiler.benchmarks.extra import NOT_INSTALLED, missing

    if missing():
        raise ConversionError(NOT_INSTALLED)
    from td_compiler.benchmarks.experiments.compare import main

    return main(context.args, "tdc compare")
