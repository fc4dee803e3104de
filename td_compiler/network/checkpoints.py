"""A bottom-up network's checkpoint in its top-down network: what fits is loaded, all else is said with the reason."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from td_compiler.errors import ConversionError, one_line
from td_compiler.network.base import RESERVED

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet

__all__ = ["LoadReport", "LoadedTensor", "load_bottom_up", "read_checkpoint"]

Outcome = Literal["loaded", "other shape", "new", "missing", "left out"]

_NESTS = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights")
_NEW = {"entry", "merge", "transition", "projection", "upsample"}
_REASONS: Mapping[Outcome, str] = {
    "loaded": "",
    "other shape": "the shapes differ: it keeps the values that it has",
    "new": "a layer that the top-down network adds",
    "missing": "the checkpoint has no such tensor",
    "left out": "the network has none of that name: entries replace its stem, and some shortcuts need no layer",
}


@dataclass(frozen=True)
class LoadedTensor:
    """What became of one tensor.

    Attributes:
        name: in the network; of what is left out, in the checkpoint.
        outcome: `loaded`; `other shape` than in the checkpoint; `new`, of a layer that the bottom-up network has not;
            `missing` from the checkpoint; `left out`, for the network has none of that name.
        shape: in the network; None where it has none.
        given: in the checkpoint; None where that has none.
    """

    name: str
    outcome: Outcome
    shape: tuple[int, ...] | None
    given: tuple[int, ...] | None

    @property
    def reason(self) -> str:
        """Why it was not loaded; "" if it was."""
        return _REASONS[self.outcome]


@dataclass(frozen=True)
class LoadReport:
    """What of a checkpoint was loaded, tensor by tensor; prints as a table of what was not.

    Attributes:
        tensors: those of the network in its order, then those of the checkpoint that it has no place for.
        prefix: what stood before every name in the checkpoint: `module.`, `model.`; "" for nothing.
    """

    tensors: tuple[LoadedTensor, ...]
    prefix: str = ""

    def of(self, outcome: Outcome) -> tuple[LoadedTensor, ...]:
        """The tensors of which that became."""
        return tuple(tensor for tensor in self.tensors if tensor.outcome == outcome)

    def __str__(self) -> str:
        number = sum(tensor.shape is not None for tensor in self.tensors)
        before = f"; {self.prefix!r} before the checkpoint's names was taken off" if self.prefix else ""
        lines = [f"{len(self.of('loaded'))} of {number} tensors loaded{before}."]
        for outcome in get_args(Outcome)[1:]:
            found = self.of(outcome)
            if not found:
                continue
            lines += ["", f"{outcome}: {len(found)} ({_REASONS[outcome]})"]
            width = max(len(tensor.name) for tensor in found)
            for tensor in found:
                shapes = [_times(shape) for shape in (tensor.given, tensor.shape) if shape is not None]
                lines.append(f"  {tensor.name:{width}}  {' -> '.join(shapes)}")
        return "\n".join(lines)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def load_bottom_up(td: TopDownNet, state: Mapping[str, Any] | str | Path) -> LoadReport:
    """Load a bottom-up network's checkpoint into its top-down network, as far as it fits; the rest stays as it is.

    Args:
        td: the network that was made of a network like the checkpoint's.
        state: its state_dict, a dictionary with one in it (`state_dict`, `model`, ...), or the path of a file of one:
            torch's, read with `weights_only=True`, or safetensors. Prefixes that all names share, such as those of
            DataParallel, torch.compile and training frameworks, are taken off.

    Returns:
        What was loaded, and what was not and why. A classifier of other classes is left as it is.

    Raises:
        ConversionError: if the file cannot be read, or nothing of the checkpoint fits.
    """
    given = read_checkpoint(Path(state)) if isinstance(state, (str, Path)) else _tensors(state)
    own = {name: value for name, value in td.state_dict(keep_vars=True).items() if isinstance(value, torch.Tensor)}
    prefix = _prefix(given, own, td)
    places: dict[str, str] = {}  # name in the network -> name in the checkpoint
    for name in given:
        if name.startswith(prefix):
            places.setdefault(_own_name(name.removeprefix(prefix), td), name)
    rows: list[LoadedTensor] = []
    loaded: dict[str, torch.Tensor] = {}
    for name, value in own.items():
        shape = tuple(value.shape)
        if name not in places:
            is_new = name.rpartition(".")[0] in td.report.new_layers or _NEW & set(name.split("."))
            outcome: Outcome = "new" if is_new else "missing"
            rows.append(LoadedTensor(name, outcome, shape, None))
            continue
        found = given[places[name]]
        if found.shape == value.shape:
            loaded[name] = found
        outcome = "loaded" if found.shape == value.shape else "other shape"
        rows.append(LoadedTensor(name, outcome, shape, tuple(found.shape)))
    if not loaded:
        raise ConversionError(
            f"nothing of the checkpoint fits: it has {_some(given)}, the network {_some(own)}; load one of the same"
            " network."
        )
    taken = {places[name] for name in own.keys() & places.keys()}
    rows += [LoadedTensor(n, "left out", None, tuple(v.shape)) for n, v in given.items() if n not in taken]
    with torch.no_grad():
        for name, value in loaded.items():
            own[name].copy_(value)
    return LoadReport(tuple(rows), prefix)


def _some(tensors: Mapping[str, torch.Tensor]) -> str:
    return ", ".join([*list(tensors)[:2], *(["..."] if len(tensors) > 2 else [])])


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name: of torch's files, read with `weights_only=True`, or safetensors.

    Raises:
        ConversionError: if it cannot be read, or holds no tensors.
    """
    return _tensors(_read(path))


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read as a checkpoint: {one_line(error)}") from error


def _tensors(state: Any) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, from the innermost of the dictionaries that hold it."""
    while isinstance(state, Mapping):
        inner = next((state[name] for name in _NESTS if isinstance(state.get(name), Mapping)), None)
        if inner is None or not any(isinstance(value, (torch.Tensor, Mapping)) for value in inner.values()):
            break
        state = inner
    tensors = state.items() if isinstance(state, Mapping) else ()
    found = {str(name): value for name, value in tensors if isinstance(value, torch.Tensor)}
    if not found:
        raise ConversionError("the checkpoint holds no tensors by name: give a state_dict, or a dictionary with one.")
    return {name.replace("_orig_mod.", ""): value for name, value in found.items()}


def _prefix(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], td: TopDownNet) -> str:
    """What to take off the checkpoint's names so that most of them are names of the network; the shortest such."""
    prefixes = Counter({"": 1})
    for name in given:
        names = name.split(".")
        prefixes.update(".".join(names[:end]) + "." for end in range(1, min(len(names), 5)))

    def fitting(prefix: str) -> int:
        ends = (name.removeprefix(prefix) for name in given if name.startswith(prefix))
        return sum(_own_name(end, td) in own for end in ends)

    likely = [prefix for prefix, number in prefixes.items() if not prefix or 4 * number >= len(given)]
    return max(sorted(likely, key=len), key=fitting)


def _own_name(name: str, td: TopDownNet) -> str:
    """The name in the network of a tensor of the source: one that is the network's own has an underscore there."""
    first, dot, rest = name.partition(".")
    renamed = first
    while renamed in RESERVED and (f"{renamed}_" in td._modules or f"{renamed}_" in td._parameters):
        renamed = f"{renamed}_"
    return f"{renamed}{dot}{rest}"
