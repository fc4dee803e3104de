"""`tdc compare` and `tdc train`: experiments for one network of one's own; they need the extra `bench`."""

from __future__ import annotations

from importlib import import_module

import typer

from td_compiler.errors import ConversionError

__all__ = ["register_experiments"]

# By command: the module that has it, below `td_compiler.benchmarks`, and what it does.
_EXPERIMENTS = {
    "compare": (
        "experiments.compare",
        "Is the top-down network of a network better, and at what? Trains both and measures (extra `bench`).",
    ),
    "train": (
        "training.command",
        "Train a network's top-down network, or itself, on a folder of images; writes its weights (extra `bench`).",
    ),
}


def register_experiments(app: typer.Typer) -> None:
    """Add the commands, whose options are the experiments' own: they are read where these are."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    for name, (_, text) in _EXPERIMENTS.items():
        app.command(name, help=text, context_settings=settings, add_help_option=False)(_run)


def _run(context: typer.Context) -> int:
    """Run the experiment that the command is called.

    Raises:
        ConversionError: if the experiments' libraries are not installed.
    """
    from td_compiler.benchmarks.extra import NOT_INSTALLED, missing

    if missing():
        raise ConversionError(NOT_INSTALLED)
    name = str(context.info_name)
    status: int = import_module(f"td_compiler.benchmarks.{_EXPERIMENTS[name][0]}").main(context.args, f"tdc {name}")
    return status
