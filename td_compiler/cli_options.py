"""The options that the commands of `tdc` share, as types: name, form and help of each, said once."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Arguments",
    "Debug",
    "Downsample",
    "Filters",
    "HeadWidth",
    "Init",
    "InputSize",
    "Merge",
    "NumClasses",
    "Source",
    "Stem",
    "Task",
    "Upsample",
]

_NETWORK = "The top-down network"

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="model.py, model.py:NAME, zoo:NAME, torchvision:NAME or timm:NAME."),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="KEY=VALUE", help="A keyword argument of the model's class or factory; repeatable."),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input-size", metavar="C,H,W", help="The image size; by default the model's own, or found by trying."
    ),
]
Filters = Annotated[
    str | None,
    typer.Option(
        metavar="mirror|uniform|reversed",
        help="Widths: the stages' own, one for all, or growing with depth. The first is the default, here and below.",
        rich_help_panel=_NETWORK,
    ),
]
Merge = Annotated[
    str | None,
    typer.Option(
        metavar="combined|add|concat", help="How a map x takes in the image's entry e.", rich_help_panel=_NETWORK
    ),
]
Upsample = Annotated[
    str | None,
    typer.Option(metavar="nearest|bilinear|transposed", help="How maps grow.", rich_help_panel=_NETWORK),
]
Downsample = Annotated[
    str | None,
    typer.Option(
        metavar="gaussian|blur|blurpool|pool|none|area|laplacian",
        help="How the image is brought to each scale.",
        rich_help_panel=_NETWORK,
    ),
]
Stem = Annotated[
    str | None,
    typer.Option(metavar="trailing|leading", help="Where the stem's downsampling is undone.", rich_help_panel=_NETWORK),
]
HeadWidth = Annotated[
    int | None,
    typer.Option(metavar="N", help="Widen the last unit to at least N filters.", rich_help_panel=_NETWORK),
]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="keep|fresh",
        help="Keep weights whose shape did not change, or draw all anew.",
        rich_help_panel=_NETWORK,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="classification|segmentation",
        help="Keep the source's head, or classify every pixel.",
        rich_help_panel=_NETWORK,
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option("--num-classes", metavar="N", help="Classes of a pixel, for segmentation.", rich_help_panel=_NETWORK),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
