"""Where a source network comes from: a file (`model.py`, `model.py:NAME`) or one of LIBRARIES (`timm:NAME`)."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from td_compiler.capture.input_size import declared_input_size, with_own_channels
from td_compiler.sources.construct import Maker, SourceError, construct, nearest
from td_compiler.sources.files import load_from_file

__all__ = ["LIBRARIES", "Library", "LoadedSource", "SourceError", "load_source", "model_names", "source_name"]

Size = tuple[int, int, int]


@dataclass(frozen=True)
class LoadedSource:
    """A source network.

    Attributes:
        name: a Python identifier for it: `resnet18`, `Net`.
        model: the network, in training mode as its maker left it.
        input_size: (C, H, W) from the library's or the model's own metadata; None where neither says.
    """

    name: str
    model: nn.Module
    input_size: Size | None


@dataclass(frozen=True)
class Library:
    """A collection of named models.

    Attributes:
        names: the names of all its models.
        maker: the function that makes the model of a name.
        arguments: what every maker is called with, unless the user says otherwise.
        input_size: (C, H, W) for a name, its network and its arguments, where the library says it in its own way.
        extra: the extra of td-compiler that installs it.
    """

    names: Callable[[], Iterable[str]]
    maker: Callable[[str], Maker]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    input_size: Callable[[str, nn.Module, Mapping[str, Any]], Size | None] = lambda name, model, arguments: None
    extra: str = "models"


def _zoo_names() -> Iterable[str]:
    from td_compiler import zoo

    return zoo.ZOO


def _zoo_maker(name: str) -> Maker:
    from td_compiler import zoo

    return zoo.ZOO[name]


def _torchvision_names() -> Iterable[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _torchvision_maker(name: str) -> Maker:
    import torchvision

    maker: Maker = torchvision.models.get_model_builder(name)
    return maker


def _torchvision_input_size(name: str, model: nn.Module, arguments: Mapping[str, Any]) -> Size | None:
    import torchvision

    for weights in torchvision.models.get_model_weights(name):  # the first ones are at the architecture's own size
        crop = weights.transforms().crop_size
        return (3, crop[-1], crop[-1])
    return None


def _timm_names() -> Iterable[str]:
    import timm

    names: list[str] = timm.list_models()
    return names


def _timm_maker(name: str) -> Maker:
    import timm

    maker: Maker = timm.models.model_entrypoint(name)
    return maker


def _pytorchcv_models() -> dict[str, Maker]:
    from pytorchcv import model_provider

    models: dict[str, Maker] = model_provider._models  # it has no public list
    return models


def _pytorchcv_input_size(name: str, model: nn.Module, arguments: Mapping[str, Any]) -> Size | None:
    size = getattr(model, "in_size", None)
    return None if size is None else (arguments.get("in_channels", 3), *size)


LIBRARIES: dict[str, Library] = {
    "zoo": Library(_zoo_names, _zoo_maker),
    "torchvision": Library(_torchvision_names, _torchvision_maker, {"weights": None}, _torchvision_input_size),
    "timm": Library(_timm_names, _timm_maker, {"pretrained": False}),
    "pytorchcv": Library(
        _pytorchcv_models,
        lambda name: _pytorchcv_models()[name],
        {"pretrained": False},
        _pytorchcv_input_size,
        extra="pytorchcv",
    ),
}


def model_names(library: str) -> list[str]:
    """The names of the models of a library, a key of LIBRARIES: of torchvision's, those that classify images.

    Raises:
        SourceError: if the library cannot be imported.
    """
    try:
        return sorted(LIBRARIES[library].names())
    except ImportError as error:
        if getattr(error, "name", None) == library:
            reason = f"{library} is not installed: pip install 'td-compiler[{LIBRARIES[library].extra}]'"
        else:
            reason = f"{library} cannot be imported: {error}"
        raise SourceError(reason, usage=False) from error


def source_name(source: str) -> str:
    """A Python identifier for a source, from its spelling alone: `Net` for `a/b.py:Net`, `b` for `a/b.py`."""
    path, chosen = _split(source)
    name = re.sub(r"\W", "_", chosen or Path(path).stem or "model")
    return f"_{name}" if name[0].isdigit() else name


def load_source(source: str, arguments: Mapping[str, Any], *, device: str | None = None) -> LoadedSource:
    """Build the network that a source names.

    Code of the user's runs here: what it prints goes to standard error.

    Args:
        source: `model.py`, `model.py:NAME` (a class, a factory or a network), or a key of LIBRARIES and a name:
            `zoo:NAME`, `torchvision:NAME`. Models of libraries come without pretrained weights.
        arguments: keyword arguments of the class or factory.
        device: where to build the model, e.g. `meta`; one that cannot be built there is built on the default device.

    Raises:
        SourceError: if there is no such model, or it cannot be built.
    """
    where, name = _split(source)
    with contextlib.redirect_stdout(sys.stderr):
        if where in LIBRARIES:
            model, size = _load_from_library(where, name, arguments, device)
        elif where.endswith(".py") or (where and Path(where).exists()):
            model, size = load_from_file(Path(where), name, arguments, device), None
        else:
            raise SourceError(_not_a_source(source), usage=True)
        return LoadedSource(source_name(source), model, size or _own_input_size(model))


def _split(source: str) -> tuple[str, str]:
    """(library or path, name), the name "" where none is given."""
    if source.endswith(".py") or (":" not in source and Path(source).exists()):
        return source, ""
    where, _, name = source.rpartition(":")
    return where, name


def _load_from_library(
    library: str, name: str, arguments: Mapping[str, Any], device: str | None
) -> tuple[nn.Module, Size | None]:
    entry = LIBRARIES[library]
    names = model_names(library)
    base, _, tag = name.partition(".") if library == "timm" else (name, "", "")  # timm: architecture.weights_tag
    if base not in names:
        hint = nearest(base, names, f"{library}:") or f": see `tdc list {library}`"
        raise SourceError(f"{library} has no model {name!r}{hint}", usage=True)
    defaults = {**entry.arguments, **({"pretrained_cfg": tag} if tag else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a library's advice on its own initialisation
        model = construct(entry.maker(base), arguments, label=f"{library}:{name}", defaults=defaults, device=device)
    return model, entry.input_size(base, model, arguments)


def _not_a_source(source: str) -> str:
    where, name = _split(source)
    kinds = "model.py, model.py:NAME, " + ", ".join(f"{library}:NAME" for library in LIBRARIES)
    if where:
        return f"{source!r}: {where!r} is neither a file nor one of {', '.join(LIBRARIES)}{nearest(where, LIBRARIES)}"
    found = []
    for library in LIBRARIES:
        with contextlib.suppress(SourceError):
            found += [f"{library}:{name}"] if name in model_names(library) else []
    return f"{source!r} is not a file" + (f"; did you mean {' or '.join(found)}?" if found else f": SOURCE is {kinds}")


def _own_input_size(model: nn.Module) -> Size | None:
    """The size that a model carries itself, with the channels that it reads."""
    declared = declared_input_size(model)
    return with_own_channels(model, declared) if declared is not None else None
