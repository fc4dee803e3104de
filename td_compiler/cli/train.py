"""`tdc train`: one network of one's own, trained by the experiments' training; needs the extra `bench`."""

from __future__ import annotations

import typer

from td_compiler.errors import ConversionError

__all__ = ["register_train", "train"]


def register_train(app: typer.Typer) -> None:
    """Add the command, whose options are those of the experiments' trainings: they are read where these are."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command("train", context_settings=settings, add_help_option=False)(train)


def train(context: typer.Context) -> int:
    """Train a network's top-down network, or itself, on a folder of images; writes its weights (extra `bench`).

    Raises:
        ConversionError: if the experiments' libraries are not installed.
    """
    from td_compiler.benchmarks.extra import NOT_INSTALLED, missing

    if missing():
        raise ConversionError(NOT_INSTALLED)
    from td_compiler.benchmarks.training.command import main

    return main(context.args, "tdc train")
