"""The options that `tdc convert`, `tdc inspect` and `tdc verify` share: which network, and how it is converted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

__all__ = ["Debug", "Given", "Seed", "read_given"]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="torch's seed, for weights drawn anew.")]


@dataclass(frozen=True)
class Given:
    """What the shared options say.

    Attributes:
        source: the network's name.
        arguments: `KEY=VALUE` for its constructor.
        options: of `td_compiler.reverse`; None where the user gave none.
        debug: whether to show tracebacks.
    """

    source: str
    arguments: list[str] | None
    options: dict[str, Any]
    debug: bool


def _choice(values: str, text: str) -> Any:
    """An option with some values, told in its help, where lines break between words; or with any number N."""
    words = values.split("|")

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return typer.Option(
        metavar="N" if values == "N" else "KIND",
        help=text if values == "N" else f"{', '.join(words)}: {text[0].lower()}{text[1:]}",
        autocompletion=None if values == "N" else complete,
        rich_help_panel="The top-down network",
    )


def read_given(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="model.py, model.py:NAME, or NAME of zoo:, torchvision:, timm: or pytorchcv:."
        ),
    ],
    filters: Annotated[
        str | None,
        _choice(
            "mirror|uniform|reversed",
            "Widths are the stages' own, one for all, or grow with depth. The first is the default, here and below.",
        ),
    ] = None,
    merge: Annotated[str | None, _choice("combined|add|concat", "How a map x takes in the image's entry e.")] = None,
    upsample: Annotated[str | None, _choice("nearest|bilinear|transposed", "How maps grow.")] = None,
    downsample: Annotated[
        str | None,
        _choice("gaussian|blur|blurpool|pool|none|area|laplacian", "How the image is brought to each scale."),
    ] = None,
    stem: Annotated[str | None, _choice("trailing|leading", "Where the stem's downsampling is undone.")] = None,
    head: Annotated[
        str | None, _choice("full|pooled", "Run layers before the head's pooling at the image's size, or the source's.")
    ] = None,
    head_width: Annotated[int | None, _choice("N", "Widen the last unit to at least N filters.")] = None,
    init: Annotated[
        str | None, _choice("keep|fresh", "Keep weights whose shape did not change, or draw all anew.")
    ] = None,
    task: Annotated[
        str | None,
        _choice("classification|segmentation", "Keep the source's head, or classify every pixel."),
    ] = None,
    num_classes: Annotated[
        int | None,
        _choice("N", "Classes: a new classifier if the source has others; 0: none. For segmentation needed."),
    ] = None,
    in_chans: Annotated[int | None, _choice("N", "Channels of the images, where they are not the source's.")] = None,
    fast: Annotated[
        bool | None,
        typer.Option(
            "--fast/--no-fast",
            help="Fold upsampling and merges into convolutions where that is faster, or not: the default of convert.",
            rich_help_panel="The top-down network",
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="The image size; by default the model's own, or found by trying."),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A keyword argument of the model's class or factory; repeatable."),
    ] = None,
    debug: Debug = False,
) -> Given:
    """The shared options, as the first parameter of a command."""
    options = {
        "filters": filters,
        "merge": merge,
        "upsample": upsample,
        "downsample": downsample,
        "stem": stem,
        "head": head,
        "head_width": head_width,
        "init": init,
        "task": task,
        "num_classes": num_classes,
        "in_chans": in_chans,
        "fast": fast,
        "input_size": input_size,
    }
    return Given(source, arg, options, debug)
