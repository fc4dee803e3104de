"""What the commands of `tdc` do once their options are read; `cli` imports it only when a command runs."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from rich.columns import Columns
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file

import td_compiler
from td_compiler.cli.explain import read_image
from td_compiler.cli.progress import progress
from td_compiler.cli.requests import Request, UsageError, check_target
from td_compiler.emission import emit_source
from td_compiler.errors import ConversionError
from td_compiler.files import write_together
from td_compiler.network.base import TopDownNet
from td_compiler.network.pretrained import storable_state
from td_compiler.report.receptive_fields import with_receptive_fields
from td_compiler.report.savings import savings
from td_compiler.report.tables import as_data, print_report, print_savings, print_verification, total
from td_compiler.sources.construct import nearest
from td_compiler.sources.converting import why_not
from td_compiler.sources.names import LIBRARIES, LoadedSource, SourceError, model_names, source_name

__all__ = ["Request", "UsageError", "convert", "inspect", "list_models", "verify"]


def convert(request: Request, out: str | None, *, weights: bool, force: bool) -> None:
    """Write a source's top-down network as Python source, and its weights if they are wanted; print a short summary.

    It is written out plainly unless the fast forms of its layers are asked for.

    Args:
        request: what to convert and how.
        out: a .py file, an existing folder, "-" for standard output, or None for the current folder.
        weights: write the state_dict beside the source as .safetensors.
        force: replace files that exist.

    Raises:
        UsageError: if the output cannot be meant or exists; nothing has been converted then.
        ConversionError: if the source or its conversion is refused, or the files cannot be written; none has been.
    """
    target = _target(out, f"{source_name(request.source)}_td.py", weights=weights, force=force)
    with progress() as begin:
        begin("reading the network and turning it")
        loaded, td = replace(request, options={"fast": False, **request.options}).reverse()
        name = _class_name(request.source, loaded)
        begin("writing its source")
        text = emit_source(td, class_name=name, origin=request.source, command=request.command())
    if target is None:
        _write_out(text)
        _summarise(name, td, file=sys.stderr)
        return
    writers: dict[Path, Callable[[Path], object]] = {target: lambda path: _write_text(path, text)}
    if weights:
        tensors = storable_state(td, way_out="leave out --weights")
        metadata = {"format": "pt", "class": name, "origin": request.source, "td-compiler": td_compiler.__version__}
        writers[target.with_suffix(".safetensors")] = lambda path: save_file(tensors, path, metadata)
    try:
        write_together(writers)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    for path in writers:
        print(f"wrote {path}")
    _summarise(name, td, file=sys.stdout)
    sys.stdout.flush()
    print(_next(request, name, target, weights=weights), file=sys.stderr)


def inspect(
    request: Request, *, as_json: bool = False, plot: str | None = None, image: str | None = None, force: bool = False
) -> None:
    """Print the bottom-up network beside its top-down network, scale by scale.

    The network is built on the meta device, where that works, so that its size costs neither time nor memory.

    Args:
        request: what to convert and how.
        as_json: print JSON (:func:`td_compiler.report.tables.as_data`) instead of a table.
        plot: a .svg or .png file to draw both networks into.
        image: an image file whose pyramid stands in that picture.
        force: replace that file if it exists.

    Raises:
        UsageError: if `plot` cannot be written or exists, or there is no such image; nothing has been converted then.
        ConversionError: if the source or its conversion is refused, or matplotlib is missing.
    """
    picture = _picture(plot, force=force) if plot is not None else None
    if image is not None and picture is None:
        raise UsageError(f"--image {image}: its pyramid stands in a picture, which --plot FILE draws.")
    if image is not None and not Path(image).is_file():
        raise UsageError(f"there is no image {image}.")
    with progress() as begin:
        begin("reading the network and turning it")
        loaded, td = request.reverse(device="meta")
        shown = read_image(Path(image), td.report.input_size) if image is not None else None
        begin("following what its maps see")
        report = with_receptive_fields(td.report, loaded.model, td)
        begin("trying what would cost less")
        with contextlib.redirect_stdout(sys.stderr):
            found = [] if as_json else savings(loaded.model, td.report, request.options)
    if as_json:
        print(json.dumps(as_data(report), indent=2))
    else:
        print_report(report, Console())
        print_savings(found, td.report, Console())
    if picture is not None:
        from td_compiler.report.plot import plot_networks  # needs matplotlib, which is an extra

        plot_networks(td, picture, title=source_name(request.source), image=shown)
        print(f"wrote {picture}", file=sys.stderr if as_json else sys.stdout)


def verify(request: Request, *, meta: bool) -> bool:
    """Convert a source and print every check of the result; returns whether all hold.

    Args:
        request: what to convert and how.
        meta: build the network on the meta device, where that works, which leaves out what needs values.

    Raises:
        ConversionError: if the source or its conversion is refused.
    """
    loaded, options = request.load("meta" if meta else None)
    with contextlib.redirect_stdout(sys.stderr), progress() as begin:
        verification = td_compiler.verify(loaded.model, progress=begin, **options)
    print_verification(verification, Console())
    return verification.passed


def list_models(library: str | None, *, show_all: bool = False) -> None:
    """Print the names of a library's models that convert, or of all libraries' with their prefixes.

    They stand in columns on a terminal, else one a line.

    Args:
        library: a key of LIBRARIES; None: all of them.
        show_all: print the others, too, a line each, with the reason behind a `#`.

    Raises:
        UsageError: if there is no such library.
        SourceError: if a library is not installed (of all: one of the extra `models`); the others' names have been
            printed then.
    """
    if library is not None and library not in LIBRARIES:
        known = ", ".join(LIBRARIES)
        raise UsageError(f"{library!r} is no library of models: {known}{nearest(library, LIBRARIES)}")
    reasons: dict[str, str] = {}
    missing: list[SourceError] = []
    with progress() as begin:
        for each in LIBRARIES if library is None else [library]:
            begin(f"looking through {each}")
            try:
                names = model_names(each)
            except SourceError as error:
                if library is not None:
                    raise
                missing += [error] if LIBRARIES[each].extra == "models" else []  # the others are for experiments
                continue
            prefix = f"{each}:" if library is None else ""
            reasons |= {f"{prefix}{name}": why_not(each, name) for name in names}
    converting = [name for name, reason in reasons.items() if not reason]
    if show_all:
        width = max(map(len, reasons), default=0)
        print("\n".join(f"{name:{width}}  # {reason}" if reason else name for name, reason in reasons.items()))
    elif sys.stdout.isatty():
        Console().print(Columns(converting, column_first=True), highlight=False)
    else:
        print("\n".join(converting))
    if sys.stderr.isatty() and not show_all and len(reasons) > len(converting):
        others = len(reasons) - len(converting)
        print(f"{others} others are not known to convert: --all shows them, with the reason", file=sys.stderr)
    if missing:
        raise missing[0]


def _picture(plot: str, *, force: bool) -> Path:
    target = Path(plot)
    if target.suffix not in {".svg", ".png"}:
        raise UsageError(f"--plot {plot}: FILE is a .svg or .png file.")
    check_target(target, "--plot another one", force=force)
    return target


def _target(out: str | None, name: str, *, weights: bool, force: bool) -> Path | None:
    """The file to write, None for standard output."""
    if out == "-":
        if weights:
            raise UsageError("--weights needs a file beside it: give -o a file or a folder.")
        return None
    target = Path(out) if out is not None else Path(name)
    if target.is_dir():
        target /= name
    elif target.suffix != ".py":
        raise UsageError(f"-o {out}: OUT is a .py file, a folder that exists, or -.")
    for path in (target, target.with_suffix(".safetensors")) if weights else (target,):
        check_target(path, "-o another one", force=force)
    return target


def _class_name(source: str, loaded: LoadedSource) -> str:
    """`ResNet18TD` for `torchvision:resnet18`, `NetTD` for a class `Net` of the user's."""
    kind, name = type(loaded.model), loaded.name
    if source.partition(":")[0] not in LIBRARIES and not kind.__module__.startswith("torch."):
        return f"{kind.__name__}TD"
    spelt = kind.__name__ if re.match("_?".join(kind.__name__), name, re.IGNORECASE) else ""
    rest = re.sub("_?".join(spelt), "", name, count=1, flags=re.IGNORECASE) if spelt else name
    return spelt + "".join(word[:1].upper() + word[1:] for word in rest.split("_")) + "TD"


def _next(request: Request, name: str, target: Path, *, weights: bool) -> str:
    """What can be done with a file that was written, in two lines."""
    make = f"from {target.stem} import {name}; model = {name}()"
    if weights:
        make += f'; model.load_state_dict(load_file("{target.with_suffix(".safetensors").name}"))'
    folder = "" if target.parent == Path() else f", in {target.parent}"
    return f"next: train it{folder}: {make}\n      or see what it is: {request.command('inspect')}"


def _write_out(text: str) -> None:
    """Write source to standard output as it stands in a file, in UTF-8, whatever the terminal's encoding is."""
    sys.stdout.flush()
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    else:  # a stream of text that someone put in its place
        sys.stdout.write(text)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _summarise(name: str, td: TopDownNet, file: TextIO) -> None:
    stages = [f"{row.top_down.width} at 1/{row.scale}" for row in reversed(td.report.stages[:-1])]
    before, after = total(td.report, "parameters")
    print(f"{name}: {len(stages)} stages, coarse to fine, of width {', '.join(stages)}", file=file)
    print(f"parameters: {before:,} bottom-up -> {after:,} top-down", file=file)
    for note in td.report.notes:
        print(f"note: {note}", file=file)
