"""Writing in place, as new values: who reads a tensor after it was changed reads what it is then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from td_compiler.capture.numbers import Dim
from td_compiler.capture.places import Place, at_line, user_place
from td_compiler.capture.recording import Parameter

if TYPE_CHECKING:
    from td_compiler.capture.recorder import Recorder

__all__ = ["Writes"]


class Writes:
    """Follows which tensors share their memory, and what becomes of the others when one of them is changed.

    Attributes:
        views: a part taken by index, by `id` -> of which tensor, which part.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.views: dict[int, tuple[torch.Tensor, Any]] = {}
        self._recorder = recorder
        self._stale: dict[int, tuple[torch.Tensor, Any, Place]] = {}  # tensor -> the changed part of it, which, where
        self._storages: dict[int, list[torch.Tensor]] = {}

    def watch(self, tensor: torch.Tensor) -> None:
        """Remember in which memory a tensor lies."""
        self._storages.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)

    def mark(self, changed: torch.Tensor, place: Place) -> None:
        """A tensor was changed in place: what shares its memory has changed as well."""
        self._stale.pop(id(changed), None)
        value = self._recorder.values.get(id(changed))
        if isinstance(value, Parameter):
            self._recorder.recording.writes.setdefault(value.path, place)
        base, index = self.views.get(id(changed), (None, None))
        for other in self._storages.get(changed.untyped_storage()._cdata, ()):
            if other is not changed:
                self._stale[id(other)] = (changed, index if other is base else None, place)
        if base is not None:
            self._stale[id(base)] = (changed, index, place)

    def renew(self, tensor: torch.Tensor) -> bool:
        """Give a tensor, a part of which was changed, the value that it has now; whether there was need."""
        if id(tensor) not in self._stale:
            return False
        part, index, place = self._stale.pop(id(tensor))
        same = all(getattr(part, name)() == getattr(tensor, name)() for name in ("size", "stride", "storage_offset"))
        if same and part.dtype == tensor.dtype:  # all of it, under another name: what nn.Identity hands on
            self._recorder.values[id(tensor)] = self._recorder.values[id(part)]
        elif index is None:
            self._refuse(place)
        else:
            self.set_item(tensor, index, part, place)
        return True

    def set_item(self, tensor: torch.Tensor, index: Any, value: Any, place: Place | None = None) -> None:
        """`tensor[index] = value` along one axis: the parts before and behind what is written, and it between."""
        recorder, place = self._recorder, place or user_place()
        self._stale.pop(id(tensor), None)
        items = index if isinstance(index, tuple) else (index,)
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items = (*items[:at], *[slice(None)] * (tensor.dim() - len(items) + 1), *items[at + 1 :])
        cut = [axis for axis, item in enumerate(items) if not (isinstance(item, slice) and item == slice(None))]
        if len(cut) == 1 and type(at := items[cut[0]]) in (int, Dim):  # one row of many: a slice of one
            items = (*items[: cut[0]], slice(at, at + 1 or None), *items[cut[0] + 1 :])
            if isinstance(value, torch.Tensor) and value.dim() == tensor.dim() - 1:
                value = recorder.record(torch.unsqueeze, "unsqueeze", (value, cut[0]), {})
        if len(cut) > 1 or not all(isinstance(item, slice) and item.step in (None, 1) for item in items):
            return self._refuse(place)
        axis = cut[0] if cut else 1
        bounds: Any = items[axis] if cut else slice(None)

        def piece(part: slice) -> torch.Tensor:
            whole = (*[slice(None)] * axis, part)
            made: torch.Tensor = recorder.record(torch.Tensor.__getitem__, "__getitem__", (tensor, whole), {})
            return made

        start, stop, extent = bounds.start or 0, bounds.stop, tensor.shape[axis]
        inside = len(range(*slice(start, stop).indices(extent)))
        shape = (*tensor.shape[:axis], inside, *tensor.shape[axis + 1 :])
        if not isinstance(value, torch.Tensor):
            value = recorder.record(torch.full_like, "full_like", (piece(slice(bounds.start, stop)), value), {})
        elif tuple(value.shape) != shape:
            part = piece(slice(bounds.start, stop))
            value = recorder.record(torch.Tensor.expand_as, "expand_as", (value, part), {})
        parts = [piece(slice(None, start))] if start else []
        parts.append(value)
        if stop is not None and (stop < 0 or stop < extent):
            parts.append(piece(slice(stop, None)))
        new = recorder.record(torch.cat, "cat", (parts, axis), {}) if len(parts) > 1 else value
        recorder.values[id(tensor)] = recorder.values[id(new)]
        return None

    def _refuse(self, place: Place) -> None:
        self._recorder.recording.refusals.append(
            f"a part of a map is changed in place at {at_line(place)}: write it as a new map, with torch.cat,"
            " torch.stack or torch.where."
        )
