"""`tdc export`: a top-down network as ONNX or as an exported program of torch's, checked against the network itself."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from td_compiler.cli.progress import progress
from td_compiler.cli.requests import Request, UsageError, check_target
from td_compiler.cli.weights import load_weights
from td_compiler.errors import ConversionError, one_line
from td_compiler.files import write_together
from td_compiler.layers.pyramid import factor_pair
from td_compiler.network.base import TopDownNet

__all__ = ["compared", "export", "exported"]

Size = tuple[int, int, int]
Run = Callable[[Tensor], Tensor]

_TOLERANCE = 1e-4  # of the largest score


def export(request: Request, out: str, *, weights: str | None, force: bool) -> None:
    """Write a top-down network for other programs, and print how near its scores are to the network's own.

    It has the plain form, evaluation mode and any number of images; images of any size where the format can say so.

    Args:
        request: what to convert and how; or the name of a network that is a top-down network already, such as
            `resnet32_td.py`.
        out: a .onnx or .pt2 file.
        weights: a file with the top-down network's weights; None leaves those that conversion gave it.
        force: replace the file if it exists.

    Raises:
        UsageError: if the output cannot be meant or exists, or the weights are another network's.
        ConversionError: if the source or its conversion is refused, what the format needs is not installed, the network
            cannot be exported, or what was written does not compute the same; there is no file then.
    """
    target = _target(out, force=force)
    network, size, scales = _network(request)
    beside = load_weights(network, Path(weights)) if weights is not None else {}
    network.eval().requires_grad_(False)
    write = _write_onnx if target.suffix == ".onnx" else _write_program
    figures: list[str] = []

    def write_checked(path: Path) -> None:
        figures[:] = _written(network, size, scales, path, write)

    try:
        write_together({target: write_checked})
    except OSError as error:
        raise ConversionError(f"{target} cannot be written: {error.strerror or error}") from error
    print(f"wrote {target}")
    print("\n".join(figures))
    if beside:
        print(f"note: {', '.join(beside)} of {weights} are no part of what was written", file=sys.stderr)
    if weights is None:
        print("note: no --weights were given: the network has those that it was made with", file=sys.stderr)


def _target(out: str, *, force: bool) -> Path:
    target = Path(out)
    if target.suffix not in {".onnx", ".pt2"}:
        raise UsageError(f"-o {out}: OUT is a .onnx or .pt2 file.")
    check_target(target, "-o another one", force=force)
    if target.suffix == ".onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConversionError(
                f"an export to ONNX needs {' and '.join(missing)}: pip install 'td-compiler[export]', or write a .pt2."
            )
    return target


def _network(request: Request) -> tuple[nn.Module, Size, tuple[int | tuple[int, int], ...]]:
    """The top-down network in its plain form, the size that it is read at, and its scales."""
    loaded, options = request.load()
    model = loaded.model
    size: Size | None = options.pop("input_size")
    if isinstance(model, TopDownNet) or callable(getattr(model, "forward_pyramid", None)):
        if set(request.options) - {"input_size"}:
            name = next(name for name in request.options if name != "input_size").replace("_", "-")
            raise UsageError(f"{request.source} is a top-down network already: it takes no --{name}.")
        if size is None:
            raise UsageError(f"{request.source} says no image size: give --input-size C,H,W, e.g. 3,224,224.")
        scales = getattr(model, "scales", None) or (32,)
        return model, size, scales
    _, td = replace(request, options={**request.options, "fast": False}).reverse()
    return td, td.report.input_size, td.scales


def _written(
    network: nn.Module,
    size: Size,
    scales: tuple[int | tuple[int, int], ...],
    path: Path,
    write: Callable[[ExportedProgram, Path], Run | None],
) -> list[str]:
    """Write for images of any size or, where that cannot be, of one size; returns what is to be said of it."""
    least = tuple(max(sides) for sides in zip(*map(factor_pair, scales), strict=True))
    fixed = f"{size[1]}x{size[2]}"
    reason: Exception | None = None
    for any_size in (True, False):
        others = [(1, size[1], size[2]), *([(3, size[1] + 2 * least[0] + 1, size[2] + least[1])] if any_size else [])]
        try:
            with progress() as begin:
                begin("exporting" if any_size else "exporting again, for images of one size")
                with _quiet():
                    run = write(exported(network, size, least if any_size else None), path)
                begin("comparing")
                figures = [] if run is None else compared(network, run, size[0], others)
        except Exception as error:
            if isinstance(error, OSError):
                raise
            reason = error
            continue
        sizes = "any size" if any_size else f"{fixed} alone"
        return [f"takes any number of images (N, {size[0]}, H, W) of {sizes}", *figures, *_unchecked(run)]
    assert reason is not None
    if isinstance(reason, ConversionError):
        raise reason
    raise ConversionError(f"the network cannot be exported: {one_line(reason)}") from reason


def exported(network: nn.Module, size: Size, least: tuple[int, ...] | None) -> ExportedProgram:
    """torch's program of a network for any number of images, and, above the coarsest scale, of any size."""
    # A map of one pixel is a special case for PyTorch: maps are larger than that.
    sides = {} if least is None else {2 + axis: Dim.DYNAMIC(min=scale + 1) for axis, scale in enumerate(least)}
    images = torch.zeros(2, *size, dtype=_dtype(network))
    return torch.export.export(network, (images,), dynamic_shapes=({0: Dim.DYNAMIC, **sides},))


def _dtype(network: nn.Module) -> torch.dtype:
    return next((each.dtype for each in network.parameters() if each.is_floating_point()), torch.float32)


def _write_program(program: ExportedProgram, path: Path) -> Run:
    with path.open("wb") as file:  # its temporary name does not end in .pt2
        torch.export.save(program, file)
    with path.open("rb") as file:
        run: Run = torch.export.load(file).module()
    return run


def _write_onnx(program: ExportedProgram, path: Path) -> Run | None:
    """Write ONNX; returns ONNX Runtime at work on it, or None where that is not installed."""
    made: Any = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["images"], output_names=["scores"], external_data=False
    )
    made.save(path)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _unchecked(run: Run | None) -> list[str]:
    return [] if run else ["not compared with the network: onnxruntime is not installed"]


def compared(network: nn.Module, run: Run, channels: int, sizes: list[tuple[int, int, int]]) -> list[str]:
    """Run a network and what was written of it on random images.

    Args:
        network: images (N, C, H, W) to scores.
        run: what was written, at work.
        channels: C.
        sizes: the batches to try, (N, H, W) each.

    Returns:
        A line for each of them with the largest difference.

    Raises:
        ConversionError: if scores differ by more than 1e-4 of the largest one.
    """
    generator, lines = torch.Generator().manual_seed(0), []
    for count, height, width in sizes:
        images = torch.randn(count, channels, height, width, generator=generator).to(_dtype(network))
        with torch.no_grad():
            expected, found = network(images), run(images)
        what = f"{count} random image{'s' * (count > 1)} of {channels}x{height}x{width}"
        if found.shape != expected.shape:
            raise ConversionError(
                f"what was written gives {tuple(found.shape)} for {what}, not {tuple(expected.shape)}."
            )
        difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
        if not difference <= _TOLERANCE * max(largest, 1e-6):  # NaN is no difference that is small
            raise ConversionError(f"what was written differs from the network by {difference:.1e} on {what}.")
        lines.append(f"{what}: scores differ by {difference:.1e} at most, of {largest:.2g}")
    return lines


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' own words kept back: of a failure the error says enough."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
