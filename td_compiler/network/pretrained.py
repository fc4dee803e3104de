"""A top-down network as a folder: its source, its weights, and what both are, as Hugging Face's libraries lay it out.

    config.json         what the network is, and the hash of its source
    modeling_td.py      the network's class, which imports torch alone
    model.safetensors   its parameters and buffers

Where td-compiler is not installed, torch and safetensors are enough, in a Python started in the folder:

    >>> import modeling_td, safetensors.torch
    >>> model = modeling_td.ResNetTD()  # `class_name` in config.json; .to(torch.bfloat16) for weights of that type
    >>> model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from td_compiler import __version__
from td_compiler.emission import emit_source
from td_compiler.errors import ConversionError, one_line
from td_compiler.files import write_together
from td_compiler.surroundings import neutral_surroundings

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet

__all__ = ["adopt_dtypes", "from_pretrained", "save_pretrained", "storable_state"]

CONFIG, CODE, WEIGHTS = "config.json", "modeling_td.py", "model.safetensors"
FORMAT = 1


@neutral_surroundings()
def save_pretrained(td: TopDownNet, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a network as a folder that rebuilds it without the source network and its library.

    The files are written together: afterwards all three are there, or none has changed.

    Args:
        td: the network, on any device but meta, in any dtype.
        folder: where to write; made, with its parents, where it is missing. Other files in it are left alone.
        overwrite: replace the three files if they exist.

    Returns:
        The folder.

    Raises:
        ConversionError: if one of the files exists, the network has no values (meta device) or no standalone source,
            or the folder cannot be written.
    """
    folder = Path(folder)
    existing = [name for name in (CONFIG, CODE, WEIGHTS) if (folder / name).exists()]
    if existing and not overwrite:
        raise ConversionError(f"{folder / existing[0]} exists: give overwrite=True to replace it, or another folder.")
    tensors = storable_state(td, way_out="reverse a network that has some")
    class_name = f"{td.report.source}TD"
    code = emit_source(td, class_name=class_name, origin=td.report.source).encode()
    config = json.dumps(_config(td, class_name, code), indent=2) + "\n"
    writers: dict[Path, Callable[[Path], object]] = {
        folder / CODE: lambda path: path.write_bytes(code),
        folder / WEIGHTS: lambda path: save_file(tensors, path, {"format": "pt"}),
        folder / CONFIG: lambda path: path.write_text(config, encoding="utf-8", newline="\n"),
    }
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together(writers)
    except (OSError, SafetensorError) as error:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise ConversionError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    return folder


@neutral_surroundings()
def from_pretrained(folder: str | Path, *, trust_code: bool = False) -> nn.Module:
    """Rebuild a network that :func:`save_pretrained` wrote: the same bits, without the source network's library.

    This runs the folder's `modeling_td.py`, which may do anything that a program can: read it, or know who wrote it.
    That the code is the one which `config.json` names shows only that the folder is whole, not that it is harmless.

    Args:
        folder: the folder, downloaded or written here.
        trust_code: True to run the folder's code; without it nothing runs.

    Returns:
        The network, images (N, C, H, W) to scores, on the CPU, in eval mode, in the dtypes of the saved one.

    Raises:
        ConversionError: if `trust_code` is no bool or the code is not trusted, a file is missing or unreadable, the
            code is another than the configuration's, or the weights do not fit it.
    """
    if not isinstance(trust_code, bool):  # "no" is true
        raise ConversionError(f"trust_code={trust_code!r} must be True or False: nothing has been run.")
    folder = Path(folder)
    for name in (CONFIG, CODE, WEIGHTS):
        if not (folder / name).is_file():
            raise ConversionError(f"{folder} has no {name}: give a folder that save_pretrained wrote.")
    config = _read_config(folder / CONFIG)
    code = (folder / CODE).read_bytes()
    if not trust_code:
        raise ConversionError(f"loading runs {folder / CODE}: read it, then give trust_code=True if you trust it.")
    digest = hashlib.sha256(code).hexdigest()
    if digest != config["code_sha256"]:
        raise ConversionError(
            f"{folder / CODE} is not the code that {CONFIG} was written with (its SHA-256 is {digest[:12]}..., not "
            f"{config['code_sha256'][:12]}...): get the folder anew, or save the network again."
        )
    model = _build(folder / CODE, code, digest, config["class_name"])
    _load(model, folder / WEIGHTS)
    return model.eval()


def storable_state(td: TopDownNet, *, way_out: str) -> dict[str, torch.Tensor]:
    """The state_dict as safetensors takes it: on the CPU, contiguous, a tensor that two layers share once for each.

    Raises:
        ConversionError: if a tensor is on the meta device; the message ends with the way out.
    """
    state = {name: value for name, value in td.state_dict().items() if isinstance(value, torch.Tensor)}
    empty = next((name for name, value in state.items() if value.is_meta), None)
    if empty is not None:
        raise ConversionError(f"{empty} is on the meta device: there are no weights to write; {way_out}.")
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def _config(td: TopDownNet, class_name: str, code: bytes) -> dict[str, Any]:
    options = dataclasses.asdict(td.report.options) if td.report.options is not None else {}
    return {
        "library_name": "td-compiler",
        "format": FORMAT,
        "td_compiler_version": __version__,
        "source": td.report.source,
        "class_name": class_name,
        "input_size": td.report.input_size,
        "scales": td.scales,
        "options": {name: _plain(value) for name, value in options.items()},
        "code_sha256": hashlib.sha256(code).hexdigest(),
    }


def _plain(option: Any) -> Any:
    """An option as JSON has it: a function by its name."""
    return getattr(option, "__qualname__", type(option).__name__) if callable(option) else option


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read: {error}.") from error
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise ConversionError(
            f"{path} has format {version!r}, this td-compiler ({__version__}) reads {FORMAT}: "
            "install the version that wrote it."
        )
    missing = [name for name in ("class_name", "code_sha256") if not isinstance(config.get(name), str)]
    if missing:
        raise ConversionError(f"{path} says no {missing[0]}: get the folder anew, or save the network again.")
    return config


def _build(path: Path, code: bytes, digest: str, class_name: str) -> nn.Module:
    # Under its own name in `sys.modules`, so that the network can be pickled and its source be shown.
    name = f"modeling_td_{digest}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = str(path)
        _run(module, code, path)
        sys.modules[name] = module
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConversionError(f"{path} defines no network {class_name}, which {CONFIG} names: save the network again.")
    try:
        return kind()
    except (Exception, SystemExit) as error:
        raise ConversionError(f"{path} makes no {class_name} ({one_line(error)}): save the network again.") from error


def _run(module: ModuleType, code: bytes, path: Path) -> None:
    """Run the very bytes that were hashed: the file may be another by now."""
    try:
        exec(compile(code, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise ConversionError(f"{path} does not run ({one_line(error)}): save the network again.") from error


def _load(model: nn.Module, path: Path) -> None:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{path} cannot be read: {error}.") from error
    adopt_dtypes(model, state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConversionError(f"{path} does not fit {CODE}: {' '.join(str(error).split())}") from error


def adopt_dtypes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give every parameter and buffer its saved dtype; the others that of the parameters, where they agree on one."""
    dtypes = {state[name].dtype for name, _ in model.named_parameters() if name in state}
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    if len(floating) == 1:
        model.to(floating.pop())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state and state[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(state[name].dtype)
