"""A source and its top-down network under examination: run once, on the meta device where that will do."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from td_compiler.capture.gradients import asks_autocast_on_meta
from td_compiler.capture.input_size import find_input_size
from td_compiler.capture.meta import META, ShapesOnly
from td_compiler.capture.skeleton import skeleton
from td_compiler.emission import emit_source
from td_compiler.errors import ConversionError
from td_compiler.graph.operators import Width, lookup
from td_compiler.network.base import TopDownNet
from td_compiler.network.pretrained import adopt_dtypes
from td_compiler.options import Options
from td_compiler.surroundings import neutral_surroundings

__all__ = ["Size", "Skipped", "Subject", "Violation", "needs_values", "tensors_in"]

Size = tuple[int, int, int]
_BATCH = 2  # batch norm needs more than one value per channel where a map has one pixel


class Violation(Exception):
    """A property does not hold; the message says where."""


class Skipped(Exception):
    """A property cannot be looked at; the message says why."""


@dataclass
class Subject:
    """A source and a copy of its top-down network, with what several checks need.

    Attributes:
        model: the source, never changed and never run where its skeleton will do.
        td: a copy of the top-down network, free to use.
        options: those that it was made with.
    """

    model: nn.Module
    td: TopDownNet
    options: Options

    @cached_property
    def on_meta(self) -> bool:
        """Whether there are no values."""
        return any(tensor.is_meta for tensor in itertools.chain(self.model.parameters(), self.model.buffers()))

    @cached_property
    def bones(self) -> tuple[nn.Module, TopDownNet]:
        """Both networks in evaluation mode on the meta device."""
        top_down = skeleton(self.td)
        assert isinstance(top_down, TopDownNet)
        return skeleton(self.model), top_down

    @cached_property
    def own_size(self) -> Size:
        """The size (C, H, W) at which the source was read, whose images may have other channels than the network's."""
        size: Size = self.td.report.input_size
        if self.options.in_chans is None:
            return size
        return (self.options.input_size or find_input_size(self.model)[1])[0], *size[1:]

    def top_down(self, size: Size) -> Size:
        """A size of the source's images as one of the network's."""
        return self.td.report.input_size[0], *size[1:]

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The size (C, H, W) at which the network was read, and an odd, oblong one if the source takes any.

        A source that flattens its last map takes sizes beside its own only where its roundings happen to agree: it
        counts as made for one size, and so it shows at twice that.
        """
        own = self.own_size
        channels, height, width = own
        if not self.takes((channels, 2 * height + 1, 2 * width - 1)):
            return (own,)
        return own, *itertools.islice((size for size in _odd_sizes(own) if self.takes(size)), 1)

    @property
    def small(self) -> Size:
        """The smaller one of the sizes."""
        return min(self.sizes, key=lambda size: size[1] * size[2])

    @cached_property
    def outputs(self) -> dict[Size, torch.Size]:
        """The shape of what the source returns at every size tried."""
        return {}

    def takes(self, size: Size) -> bool:
        """Whether the source runs on images of a size, and makes one row of scores, or one map, of each image.

        One that folds the positions of a larger map into the batch, or into the scores, does not.
        """
        try:
            shape = self.source_shape(size)
            return shape[0] == _BATCH and (len(shape) > 2 or shape == self.source_shape(self.own_size))
        except Exception:
            return False

    def source_shape(self, size: Size) -> torch.Size:
        """The shape of what the source returns for a batch of images."""
        if size not in self.outputs:
            scores = self._run(self.bones[0], lambda: copy.deepcopy(self.model), size)
            self.outputs[size] = next(iter(tensors_in(scores))).shape
        return self.outputs[size]

    def prepared(self, size: Size) -> Size:
        """The size (C, H, W) of the images that the pyramid scales: those given, or what a prologue makes of them."""
        if self.td.prologue is None:
            return self.top_down(size)
        _, channels, height, width = self.maps(size)[0][0].shape
        return channels, height, width

    def expected_shape(self, size: Size) -> torch.Size:
        """The shape that the top-down network's scores must have: the source's, or one score per class and pixel.

        Without a classifier the features follow the width of the last stage, in the source and here.
        """
        given = self.source_shape(size)
        if self.options.num_classes == 0:
            return torch.Size((given[0], self.maps(size)[2].shape[1]))
        if self.options.num_classes and self.options.task == "classification":
            return torch.Size((given[0], self.options.num_classes))
        if self.options.task == "segmentation":
            return torch.Size((given[0], self.options.num_classes or 0, *self.prepared(size)[1:]))
        if self._has_classifier:
            return given
        rows = self.td.report.stages[:-1]
        last = next(row.bottom_up.width for row in reversed(rows) if row.bottom_up is not None)
        return torch.Size((given[0], given[1] * rows[0].top_down.width // last))

    @cached_property
    def _has_classifier(self) -> bool:
        """Whether the head has a layer that sets the number of scores, whatever it reads."""
        nodes = self.td.segments[-1].graph.nodes
        layers = [(n, self.td.get_submodule(str(n.target)) if n.op == "call_module" else None) for n in nodes]
        rows = [lookup(node, module) for node, module in layers]
        return any(row is not None and row.width is Width.FREE for row in rows)

    @cached_property
    def computed(self) -> dict[Size, tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]]:
        """What the top-down network computed at every size tried."""
        return {}

    def maps(self, size: Size) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Pyramid levels, finest first, stage maps, coarse to fine, and class scores."""
        if size not in self.computed:
            self.computed[size] = self._run(
                _Everything(self.bones[1]), lambda: _Everything(copy.deepcopy(self.td)), self.top_down(size)
            )
        return self.computed[size]

    def run_source(self, watch: Callable[[nn.Module], nn.Module], size: Size) -> None:
        """Run a copy of the source, in evaluation mode, that `watch` has put hooks on."""
        self._run(watch(skeleton(self.model)), lambda: watch(copy.deepcopy(self.model)), size)

    def _run(self, bones: nn.Module, original: Callable[[], nn.Module], size: Size) -> Any:
        """Run on the meta device or, where layers need values, for real."""
        with torch.no_grad():
            try:
                with ShapesOnly():
                    return bones(self.images(size, META))
            except Exception as error:
                if self.on_meta or not needs_values(error):
                    raise
            return original().eval()(self.images(size))

    @cached_property
    def emitted_class(self) -> tuple[Callable[..., nn.Module], int]:
        """The class that the emitted source defines; and the lines that it takes.

        Raises:
            Skipped: if the network cannot be written as source.
        """
        try:
            text = emit_source(self.td, class_name="Emitted", origin=self.td.report.source)
        except ConversionError as error:
            raise Skipped(str(error)) from error
        module = types.ModuleType("emitted")
        exec(compile(text, "<emitted source>", "exec"), module.__dict__)
        return module.__dict__["Emitted"], len(text.splitlines())

    @cached_property
    def emitted(self) -> nn.Module:
        """The network that the emitted source makes, with the values of the top-down network.

        Raises:
            Skipped: if the network cannot be written as source.
        """
        network = self.made_afresh()
        network.load_state_dict(self.td.state_dict(), strict=True)
        return network.eval()

    @cached_property
    def fresh(self) -> nn.Module:
        """An instance of the emitted class with its own first values; nothing may change its parameters."""
        return self.made_afresh()

    def made_afresh(self, **arguments: Any) -> nn.Module:
        """An instance of the emitted class, on the device and in the dtypes of the top-down network.

        Raises:
            Skipped: if the network cannot be written as source.
        """
        make, _ = self.emitted_class
        like = next(itertools.chain(self.td.parameters(), self.td.buffers()), torch.empty(()))
        with neutral_surroundings(), torch.device(like.device):
            network = make(**arguments)
        adopt_dtypes(network, self.td.state_dict())
        return network

    def images(self, size: Size, device: str | torch.device | None = None) -> torch.Tensor:
        """Images (N, C, H, W) of the network's dtype, on its device."""
        first = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(()))
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(_BATCH, *size, generator=generator)
        return images.to(device=device or first.device, dtype=first.dtype)


class _Everything(nn.Module):
    """A top-down network that puts out all it computes on the way."""

    def __init__(self, td: TopDownNet) -> None:
        super().__init__()
        self.td = td

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        levels = self.td.pyramid(images)
        maps = self.td.stage_maps(levels)
        return levels, maps, self.td.run_segment(self.td.segments[-1], x=maps[-1])


def needs_values(error: Exception) -> bool:
    """Whether a run on the meta device broke down because something looks at values, or has them elsewhere."""
    words = ("meta tensor", "data-dependent", "device meta", "meta device")
    return any(each in str(error) for each in words) or asks_autocast_on_meta(error)


def _odd_sizes(size: Size) -> Iterator[Size]:
    """Odd and oblong sizes: small ones first, then those beside the network's own."""
    channels, height, width = size
    for side in (33, 65, 97, 161):
        if side < min(height, width):
            yield channels, side, side - 4
    yield channels, (height + 1) | 1, (width - 1) | 1
    yield channels, 2 * height + 1, 2 * width - 1


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value: itself, or those of a tuple, list, mapping or dataclass."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from tensors_in([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, (tuple, list)):
        yield from itertools.chain.from_iterable(map(tensors_in, value))
