"""A network to train: where it comes from and in which arrangement."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from td_compiler.errors import ConversionError

if TYPE_CHECKING:
    from torch import nn

    from td_compiler.report.report import Cost

__all__ = ["ARRANGEMENTS", "Costs", "NetworkSpec", "helped", "source_content"]

ARRANGEMENTS = ("bu", "mirror", "uniform", "reversed")

Size = tuple[int, int, int]

# What makers call the number of an image's channels. Others are called without it, and must be made for the images.
_CHANNEL_KEYWORDS = ("in_channels", "in_chans")


@dataclass(frozen=True)
class Costs:
    """What a network costs for one image.

    Attributes:
        parameters: trainable and frozen parameters.
        macs: multiply-accumulate operations of convolutions and linear layers.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class NetworkSpec:
    """A bottom-up network or one of its top-down networks.

    Attributes:
        name: the source: `zoo:lenet_fc`, `torchvision:resnet18`, `timm:resnet18`, `FILE.py[:name]`; a bare name is
            one of the zoo.
        arrangement: `bu` for the source itself, else the `filters` of :func:`td_compiler.reverse`.
        options: further options of `reverse`, as pairs: `(("head_width", 32),)`.
    """

    name: str
    arrangement: str = "bu"
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.arrangement not in ARRANGEMENTS:
            raise ConversionError(f"arrangement={self.arrangement!r} is not one of {', '.join(ARRANGEMENTS)}.")
        if not (":" in self.name or self.name.endswith(".py")):
            object.__setattr__(self, "name", f"zoo:{self.name}")

    @property
    def label(self) -> str:
        """The arrangement in words: `BU`, `mirror`, `mirror, head_width=32`."""
        arrangement = "BU" if self.arrangement == "bu" else self.arrangement
        return ", ".join([arrangement, *(f"{name}={value}" for name, value in self.options)])

    def with_options(self, options: Sequence[tuple[str, Any]]) -> NetworkSpec:
        """The same with further options, of which its own stay."""
        more = tuple(option for option in options if option[0] not in dict(self.options))
        return replace(self, options=(*self.options, *more)) if more else self

    def content(self) -> str:
        """What a job's key holds of the source, see `source_content`."""
        return source_content(self.name)

    def build(self, input_size: Size, num_classes: int) -> nn.Module:
        """The network with fresh weights, drawn from torch's global generator.

        Args:
            input_size: (C, H, W) of its images.
            num_classes: the number of its scores.

        Raises:
            ConversionError: if there is no such network, it does not fit the images and classes, or it cannot be
                converted.
        """
        source = _source(self.name, input_size, num_classes)
        if self.arrangement == "bu":
            return source
        return self.reversed(source, input_size)

    def costs(self, input_size: Size, num_classes: int) -> Costs:
        """Parameters and MACs, found without weights.

        Raises:
            ConversionError: as `build` does; for a bottom-up network also where it cannot be converted.
        """
        source = _source(self.name, input_size, num_classes, device="meta").to("meta")
        report = self.reversed(source, input_size).report
        costs: list[Cost]
        if self.arrangement == "bu":
            costs = [stage.bottom_up for stage in report.stages if stage.bottom_up]
        else:
            costs = [stage.top_down for stage in report.stages]
        return Costs(sum(cost.parameters for cost in costs), sum(cost.macs for cost in costs))

    def reversed(self, source: nn.Module, input_size: Size, init: str = "fresh") -> Any:
        """A source's top-down network, with new weights or those of the source that fit.

        Raises:
            ConversionError: if it cannot be converted.
        """
        from td_compiler import reverse

        filters: Any = "mirror" if self.arrangement == "bu" else self.arrangement
        options = {"init": init, **dict(self.options)}
        return reverse(source, filters=filters, input_size=input_size, **options)


def helped(teacher: str, start: str) -> list[str]:
    """What helps a network, in words: `teacher=bu`, `weights=bu`."""
    return [f"{name}={value}" for name, value in (("teacher", teacher), ("weights", start)) if value]


def source_content(name: str) -> str:
    """What identifies a source beside its name: a hash of the user's file, or the library and its version.

    The hash is of the file and of what it imports from its own folder.

    Raises:
        ConversionError: if there is no such network.
    """
    library, _, _ = name.partition(":")
    path = Path(name if name.endswith(".py") else name.rpartition(":")[0])
    if path.suffix == ".py":
        content = f"{path.name} {_hash_with_imports(path)}"
    elif library in {"torchvision", "timm", "pytorchcv"}:
        with contextlib.suppress(metadata.PackageNotFoundError):
            library = f"{library} {metadata.version(library)}"
        content = library
    else:
        content = library  # the compiler's own, whose version is in the key
    _known(name, content)
    return content


@functools.lru_cache(maxsize=64)
def _known(name: str, content: str) -> None:
    from td_compiler.sources.names import load_source

    load_source(name, {}, device="meta")


def _hash_with_imports(path: Path) -> str:
    """Of a Python file and the files in its folder that it imports, by whatever way."""
    digest, waiting, seen = hashlib.sha256(), [path], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        text = file.read_bytes()
        digest.update(f"{file.relative_to(path.parent)} {len(text)}\n".encode() + text)
        for node in ast.walk(_parsed(text)):
            for module in _imported(node):
                place = path.parent.joinpath(*module.split("."))
                waiting += [place.with_suffix(".py"), place / "__init__.py"]
    return digest.hexdigest()[:12]


def _parsed(text: bytes) -> ast.AST:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):  # whoever runs the file says so
        return ast.Module([], [])


def _imported(node: ast.AST) -> list[str]:
    """The modules that a statement may import: of `from a import b` both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = [alias.name for alias in node.names if alias.name != "*"]
        return [node.module, *(f"{node.module}.{name}" for name in names)] if node.module else names
    return []


def _source(name: str, input_size: Size, num_classes: int, device: str | None = None) -> nn.Module:
    """The bottom-up network, checked to give a score for each class."""
    import torch

    from td_compiler.sources.names import load_source

    accepted = _accepted(name, {"num_classes": num_classes, **dict.fromkeys(_CHANNEL_KEYWORDS, input_size[0])})
    model = load_source(name, accepted, device=device).model
    mode = model.training
    where = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    images = torch.zeros(1, *input_size, device=where)
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(images).shape)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"{name} does not take images of {input_size} (C, H, W): {reason}") from error
    if shape != (1, num_classes):
        raise ConversionError(
            f"{name} gives {shape} for one image, not (1, {num_classes}): the data has other classes."
        )
    return model.train(mode)


def _accepted(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the network's maker takes."""
    from td_compiler.sources.names import SourceError, load_source

    accepted = dict(arguments)
    for keyword in arguments:
        try:
            load_source(name, {keyword: arguments[keyword]}, device="meta")
        except SourceError as error:
            if not (error.usage and f"no argument {keyword!r}" in str(error)):
                raise
            del accepted[keyword]
    return accepted
