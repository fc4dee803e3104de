"""`tdc explain`: where in photographs a network finds a class, stage by stage."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from td_compiler.cli.progress import progress
from td_compiler.cli.requests import Request, UsageError, check_target
from td_compiler.cli.weights import load_weights
from td_compiler.errors import ConversionError
from td_compiler.report.heat_maps import heat_maps, plot_heat_maps
from td_compiler.sources.names import source_name

__all__ = ["Look", "explain", "read_image"]


@dataclass(frozen=True)
class Look:
    """How networks are looked at.

    Attributes:
        weights: a file with the top-down network's weights.
        bottom_up: a file with the bottom-up network's weights.
        random_weights: draw networks with the weights that they are made with.
        label: the class to explain; None: the one that each network finds.
        mean: what is taken off images in [0, 1] before a network reads them, a number or one for each channel.
        std: what they are then divided by.
    """

    weights: str | None = None
    bottom_up: str | None = None
    random_weights: bool = False
    label: int | None = None
    mean: str | None = None
    std: str | None = None


def explain(request: Request, images: Sequence[str], out: str | None, look: Look, *, force: bool) -> None:
    """Draw heat maps of image files, the bottom-up network above the top-down network where both are given.

    Args:
        request: what to convert and how.
        images: image files.
        out: a .png, .svg or .pdf file; None: NAME_explained.png in the current folder.
        look: which weights, and what is explained.
        force: replace the file if it exists.

    Raises:
        UsageError: if the output cannot be meant or exists, there are no weights, or no such image.
        ConversionError: if the source or its conversion is refused, or matplotlib is missing.
    """
    target = Path(out or f"{source_name(request.source)}_explained.png")
    if target.suffix not in {".png", ".svg", ".pdf"}:
        raise UsageError(f"-o {out}: OUT is a .png, .svg or .pdf file.")
    check_target(target, "-o another one", force=force)
    if not (look.weights or look.bottom_up or look.random_weights):
        raise UsageError(
            "the heat map of an untrained network says nothing: give --weights or --bottom-up FILE, or --random-weights"
            " to draw it nevertheless."
        )
    missing = next((each for each in images if not Path(each).is_file()), None)
    if missing is not None:
        raise UsageError(f"there is no image {missing}.")
    if callable(getattr(request.load("meta")[0].model, "forward_pyramid", None)):
        raise UsageError(
            f"{request.source} is a top-down network: give the network that it was made of, and --weights."
        )
    source, td = request.reverse()
    size = td.report.input_size
    networks: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {}
    if look.bottom_up or (look.random_weights and not look.weights):
        beside = load_weights(source.model, Path(look.bottom_up), "--bottom-up") if look.bottom_up else {}
        networks["BU"] = source.model.eval(), beside
    if look.weights or (look.random_weights and not look.bottom_up):
        networks["TD"] = td.eval(), load_weights(td, Path(look.weights)) if look.weights else {}
    pictures = torch.stack([read_image(Path(each), size) for each in images])
    labels = None if look.label is None else [look.label] * len(images)
    explained = {}
    with progress() as begin:
        for name, (network, beside) in networks.items():
            begin(f"looking into the {name} network")
            network.requires_grad_(False)
            read = _normalised(pictures, look, beside)
            explained[name] = heat_maps(network, read, labels, input_size=size)
        begin("drawing")
        try:
            plot_heat_maps(list(pictures), [Path(each).stem for each in images], explained, target)
        except OSError as error:
            raise ConversionError(f"{target} cannot be written: {error.strerror or error}") from error
    print(f"wrote {target}")
    if look.random_weights and not (look.weights and look.bottom_up):
        print("note: weights are random where none were given: these heat maps say nothing", file=sys.stderr)


def read_image(path: Path, size: tuple[int, int, int]) -> Tensor:
    """An image file as (C, H, W) in [0, 1]: what is in its middle with the shape of `size`, brought to that size.

    Raises:
        ConversionError: if it cannot be read as an image of one channel or three, or Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ConversionError("to read images Pillow is needed: pip install 'td-compiler[plot]'.") from error
    channels, height, width = size
    if channels not in (1, 3):
        raise ConversionError(f"the network reads {channels} channels: an image file has one or three.")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UsageError(f"{path} cannot be read as an image.") from error
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return (
        torch.tensor(list(fitted.tobytes()), dtype=torch.float32).view(height, width, channels).permute(2, 0, 1) / 255
    )


def _normalised(images: Tensor, look: Look, beside: dict[str, Tensor]) -> Tensor:
    """Images as the network was trained on them: by what is given, else by what its checkpoint says."""
    mean, std = beside.get("normalise.mean"), beside.get("normalise.deviation")
    if look.mean is not None:
        mean = _numbers("--mean", look.mean, images.shape[1])
    if look.std is not None:
        std = _numbers("--std", look.std, images.shape[1])
    images = images if mean is None else images - mean.float()
    return images if std is None else images / std.float()


def _numbers(option: str, text: str, channels: int) -> Tensor:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, channels) or (option == "--std" and min(numbers) <= 0):
        count = "one number or three" if channels == 3 else "one number"
        example = "0.485,0.456,0.406" if channels == 3 else "0.5"
        raise UsageError(f"{option} {text}: give {count}{' above 0' if option == '--std' else ''}, such as {example}.")
    return torch.tensor(numbers).view(-1, 1, 1)
