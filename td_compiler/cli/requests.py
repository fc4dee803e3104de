"""What a command is asked: which network, how it is converted, where to write; read from words and checked."""

from __future__ import annotations

import ast
import contextlib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from td_compiler import reverse
from td_compiler.cli.options import Given
from td_compiler.errors import ConversionError
from td_compiler.network.base import TopDownNet
from td_compiler.options import Options
from td_compiler.sources.names import LoadedSource, load_source

__all__ = ["Request", "UsageError", "check_target"]


class UsageError(ConversionError):
    """A command that cannot be meant as it stands."""

    usage = True


@dataclass(frozen=True)
class Request:
    """What to convert and how, read from the words of a command and checked.

    Attributes:
        source: as :func:`td_compiler.sources.names.load_source` takes it.
        options: those options of :func:`td_compiler.reverse` that were given.
        arguments: keyword arguments of the source's class or factory.
        seed: torch's seed, None to leave it.

    Raises:
        UsageError: if a value is not allowed.
    """

    source: str
    options: Mapping[str, Any]
    arguments: Mapping[str, Any]
    seed: int | None = None

    @classmethod
    def read(cls, given: Given, seed: int | None = None) -> Request:
        """Read a request from words: `input_size` is "C,H,W", an argument "KEY=VALUE", an option not given None."""
        options = {name: value for name, value in given.options.items() if value is not None}
        if "input_size" in options:
            options["input_size"] = _size(options["input_size"])
        try:
            Options(**options)
        except ConversionError as error:
            name, equals, rest = str(error).partition("=")
            raise UsageError(f"--{name.replace('_', '-')}{equals}{rest}") from error
        return cls(given.source, options, dict(map(_argument, given.arguments or ())), seed)

    def command(self, what: str = "convert") -> str:
        """The command that repeats this conversion, or does something else with the same network."""
        words = [word for name, value in self.options.items() for word in _words(name.replace("_", "-"), value)]
        words += [word for name, value in self.arguments.items() for word in ("--arg", f"{name}={value}")]
        words += ["--seed", str(self.seed)] if self.seed is not None and what == "convert" else []
        return shlex.join(["tdc", what, self.source, *words])

    def load(self, device: str | None = None) -> tuple[LoadedSource, dict[str, Any]]:
        """The source network, built after torch's seed is set, and the options of :func:`td_compiler.reverse`.

        Args:
            device: where to build it, see :func:`td_compiler.sources.names.load_source`.

        Raises:
            SourceError: if there is no such network, or it cannot be built.
        """
        if self.seed is not None:
            torch.manual_seed(self.seed)
        loaded = load_source(self.source, self.arguments, device=device)
        return loaded, {"input_size": loaded.input_size, **self.options}

    def reverse(self, device: str | None = None) -> tuple[LoadedSource, TopDownNet]:
        """The source network and its top-down network.

        Raises:
            ConversionError: if the source or its conversion is refused.
        """
        loaded, options = self.load(device)
        with contextlib.redirect_stdout(sys.stderr):  # the network's own code runs, and may print
            return loaded, reverse(loaded.model, **options)


def check_target(target: Path, way_out: str, *, force: bool) -> None:
    """Refuse a path where no file can be written, or where one is that is not to be replaced.

    Raises:
        UsageError: which names `way_out`, beside --force.
    """
    if not target.parent.is_dir():
        raise UsageError(f"{target} cannot be written: there is no folder {target.parent}.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{target} cannot be written: the folder {target.parent} is read-only.")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} cannot be written: it is not a file.")
    if target.exists() and not force:
        raise UsageError(f"{target} exists: give --force to replace it, or {way_out}.")


def _words(name: str, value: Any) -> tuple[str, ...]:
    """An option as it is written on the command line."""
    if isinstance(value, bool):
        return (f"--{name}" if value else f"--no-{name}",)
    return f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _size(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = map(int, text.split(","))
    except ValueError as error:
        raise UsageError(f"--input-size={text!r} must be three numbers C,H,W, e.g. 3,224,224.") from error
    return channels, height, width


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--arg={text!r} must be KEY=VALUE, e.g. num_classes=10.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):  # not a literal of Python: the word itself
        return name, value
