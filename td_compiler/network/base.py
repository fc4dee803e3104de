"""What every top-down network has beside what its own text says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import fx, nn

from td_compiler.errors import ConversionError
from td_compiler.graph.notes import plan
from td_compiler.layers.pyramid import Pyramid, factor_pair
from td_compiler.network.checkpointing import StageKey, chosen_stages, run_checkpointed
from td_compiler.network.filled import filled
from td_compiler.network.program import take_form
from td_compiler.network.segments import Segment, carried

if TYPE_CHECKING:
    from td_compiler.report.report import Report

__all__ = ["HEAD", "RESERVED", "TopDownNet", "plant"]


class PreparedPyramid(Pyramid):
    """A pyramid of images that the network's prologue has prepared, once, before they are scaled (SPEC 1.0)."""

    def __init__(self, network: TopDownNet, pyramid: Pyramid) -> None:
        super().__init__(pyramid.scales, pyramid.downsample)
        self.__dict__["_network"] = network  # past nn.Module's registration: the network is no part of its own part

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The prepared images at every scale, finest first."""
        network: TopDownNet = self.__dict__["_network"]
        assert network.prologue is not None
        return super().forward(network.run_segment(network.prologue, images=images))


class TopDownNet(nn.Module):
    """A top-down network (paper section 3): runs coarse to fine over an image pyramid, then classifies.

    Made by :func:`td_compiler.reverse`. Its class is the one whose text `tdc convert` writes, with what is here beside
    it; blocks, entries, transitions and merges are modules with a forward of their own. It trains, moves, saves and
    copies like any module; its parameters keep the names that they have in the source network, beside `entry`,
    `transition`, `merge` and `upsample` for what is new.

    Attributes:
        pyramid: the module that turns images (N, C, H, W) into the list of scaled images, finest first, after the
            prologue.
        prologue: what is done to the images once, before they are scaled (SPEC 1.0); None where nothing is.
        segments: the stages, coarse to fine, then the head.
        unfolded: the segments in the form of the paper, where their modules have their fast forms
            (:func:`td_compiler.fast`); None where they have not.
        channels_last: whether the fast form lays maps out channels last.
        report: what was found in the source and done to it, stage by stage.
        checkpointed: the names of the stages that :meth:`checkpoint_stages` chose.
    """

    segments: list[Segment]
    report: Report
    prologue: Segment | None
    unfolded: list[Segment] | None
    channels_last: bool
    checkpointed: frozenset[str] = frozenset()

    if TYPE_CHECKING:  # what the text of every network says
        num_classes: int
        num_features: int
        head_hidden_size: int
        in_chans: int
        pretrained_cfg: dict[str, Any]
        default_cfg: dict[str, Any]

        def forward(self, images: torch.Tensor) -> torch.Tensor: ...
        def forward_features(self, images: torch.Tensor) -> torch.Tensor: ...
        def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor: ...
        def forward_pyramid(self, levels: Sequence[torch.Tensor]) -> torch.Tensor: ...
        def get_classifier(self) -> nn.Module: ...

    def __init__(
        self,
        modules: Mapping[str, nn.Module | torch.Tensor],
        segments: Sequence[Segment],
        pyramid: Pyramid,
        report: Report,
        prologue: Segment | None = None,
        unfolded: Sequence[Segment] | None = None,
        channels_last: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.segments = list(segments)
        self.report = report
        self.prologue = prologue
        self.unfolded = None if unfolded is None else list(unfolded)
        self.channels_last = channels_last
        self._modules["pyramid"] = pyramid if prologue is None else PreparedPyramid(self, pyramid)
        plant(self, filled(modules, self.parts))
        take_form(self)

    @property
    def pyramid(self) -> Pyramid:
        pyramid = self._modules["pyramid"]
        assert isinstance(pyramid, Pyramid)
        return pyramid

    @property
    def scales(self) -> tuple[int | tuple[int, int], ...]:
        """The pyramid's scales, finest first, e.g. (1, 2, 4)."""
        return self.pyramid.scales

    @property
    def parts(self) -> list[Segment]:
        """All that runs, in order: the prologue, where there is one, the stages, coarse to fine, the head."""
        return self.segments if self.prologue is None else [self.prologue, *self.segments]

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps after stages, coarse to fine, as timm's models give them.

        Args:
            x: images (N, C, H, W).
            indices: which stages, counted from the coarsest one as :attr:`feature_info` is; the last so many for a
                number; None: all.
            norm: of no effect: a stage's map is what the next stage reads.
            stop_early: run no stage behind the last one that is asked for.
            output_fmt: `NCHW` alone.
            intermediates_only: return the list of maps alone.

        Returns:
            (the last map, the list of maps), or the list.

        Raises:
            ValueError: if an index or the format is none.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: maps are NCHW.")
        places = range(len(self.segments) - 1)
        chosen = places if indices is None else places[-indices:] if isinstance(indices, int) else list(indices)
        if not chosen or any(index not in range(-len(places), len(places)) for index in chosen):
            raise ValueError(f"indices={indices!r}: the stages are {places[0]} to {places[-1]}, coarse to fine.")
        chosen = [places[index] for index in chosen]
        maps = self.stage_maps(self.pyramid(x), max(chosen) + 1 if stop_early else None)
        intermediates = [maps[index] for index in chosen]
        return intermediates if intermediates_only else (maps[-1], intermediates)

    def stage_maps(self, levels: Sequence[torch.Tensor], count: int | None = None) -> list[torch.Tensor]:
        """The map after every stage, coarse to fine, from given images, one per scale, finest first.

        Args:
            levels: the images, as :attr:`pyramid` makes them.
            count: how many of the stages to run; None: all.

        Raises:
            ValueError: if there are not as many levels as scales, or a level has not the size of its scale (SPEC 2.1)
                or other channels or images than the finest one.
        """
        _check_levels(levels, self.scales)
        maps: list[torch.Tensor] = []
        state: dict[str, torch.Tensor] = {}
        for segment, image in list(zip(self.segments[:-1], levels[::-1], strict=True))[:count]:
            state = carried(self.run_segment(segment, image=image, **state))
            maps.append(state["x"])
        return maps

    def run_segment(self, segment: Segment, **inputs: torch.Tensor) -> Any:
        """Run one of the segments on the inputs that it names, checkpointed where that is asked for and of use.

        Returns:
            Its map, or (its map, the one before it) where the next stage reads two (SPEC 2.13).
        """
        method = getattr(self, self._method(segment.name))
        if segment.name in self.checkpointed and torch.is_grad_enabled():
            return run_checkpointed(method, self, [inputs[name] for name in segment.inputs])
        return method(*(inputs[name] for name in segment.inputs))

    def _method(self, name: str) -> str:
        """The method that runs a segment: named like it, but where a layer has that name."""
        name = {"head": "forward_head", "prologue": "prepare"}.get(name, name)
        while not callable(getattr(type(self), name, None)):
            name = f"run_{name}"
        return name

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the place of the last layer; 0 classes: none, the network returns features (N, C).

        Raises:
            ConversionError: if another pooling is wanted, or the network has no linear or convolutional classifier.
        """
        if global_pool is not None:
            raise ConversionError(f"global_pool={global_pool!r} is for timm.create_model: the pooling stays as it is.")
        like = next(self.parameters())
        try:
            super().reset_classifier(num_classes)  # type: ignore[misc]  # the text's
        except TypeError as error:
            raise ConversionError(f"{error}: give num_classes to reverse, or to timm.create_model.") from error
        self.get_classifier().to(like.device, like.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Checkpoint all stages, or none, by timm's name for it (:meth:`checkpoint_stages`)."""
        self.checkpoint_stages(enable)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What timm asks of the maps of :meth:`forward_intermediates`, coarse to fine: width, scale, and the stage."""
        rows = {row.name: row.top_down for row in self.report.stages}
        return [
            {"num_chs": rows[each.name].width, "reduction": each.scale, "module": each.name}
            for each in self.segments[:-1]
        ]

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, ...]]:
        """The place of a parameter among the groups of timm's layer decay, by its name: coarse to fine, as they run.

        Args:
            coarse: a group for every stage; else one for every block.
        """
        first: dict[str, int] = {}  # path of a layer or tensor -> when it first runs
        place = -1
        for number, segment in enumerate(self.parts):
            unit = None
            for node in segment.graph.nodes:
                if node.op in ("call_module", "get_attr"):
                    if plan(node).unit != unit or unit is None:
                        place, unit = place + 1, plan(node).unit
                    first.setdefault(str(node.target), number if coarse else place)

        def group(name: str) -> tuple[int, ...]:
            names = name.split(".")
            paths = (".".join(names[:end]) for end in range(len(names), 0, -1))
            return (next((first[path] for path in paths if path in first), max(first.values())),)

        return group

    def checkpoint_stages(self, stages: bool | Iterable[StageKey] = True) -> Self:
        """Train in less memory: keep what stages read, and compute what else gradients need again, stage by stage.

        Gradients, running statistics and random numbers are those of training without. Copies keep the choice;
        without gradients it has no effect.

        Args:
            stages: True for all, False for none, or some by scale (`[1, 2]`) or by name (`["stage1"]`).

        Raises:
            ValueError: if there is no stage of a name or scale.
        """
        self.checkpointed = chosen_stages(self.segments[:-1], stages)
        return self

    def fast(self) -> Self:
        """Give the modules their fast forms, in place (:func:`td_compiler.fast`)."""
        from td_compiler.network.fast import fast

        return fast(self)

    def plain(self) -> Self:
        """Give the modules the form of the paper, torch's own layers, in place (:func:`td_compiler.plain`)."""
        from td_compiler.network.fast import plain

        return plain(self)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder of source and weights (:func:`td_compiler.network.pretrained.save_pretrained`)."""
        from td_compiler.network.pretrained import save_pretrained  # emits source, which training has no use for

        return save_pretrained(self, folder, overwrite=overwrite)


HEAD = "segmentation_head"
"""The path of the classifier of pixels that stands in place of the source's own (SPEC 6.5)."""

RESERVED = frozenset(
    {
        *("entry", "merge", "projection", "transition", "upsample"),
        *("num_classes", "num_features", "head_hidden_size"),
        *("forward_features", "forward_head", "forward_pyramid", "get_classifier", "reset_classifier"),
        *dir(TopDownNet),
        *TopDownNet.__annotations__,
    }
)
"""Names at a top-down network's top that are its own, so that nothing of the source can stand there."""


def _check_levels(levels: Sequence[torch.Tensor], scales: Sequence[int | tuple[int, int]]) -> None:
    if len(levels) != len(scales):
        raise ValueError(f"{len(levels)} images for {len(scales)} scales {tuple(scales)}: give one per scale")
    if torch.compiler.is_compiling() or any(isinstance(level, fx.Proxy) for level in levels):
        return  # sizes may be symbols there, and a comparison would bind them
    number, channels, *finest = levels[0].shape
    for level, scale in zip(levels, scales, strict=True):
        expected = (number, channels, *(-(-n // by) for n, by in zip(finest, factor_pair(scale), strict=True)))
        if tuple(level.shape) != expected:
            raise ValueError(
                f"the image at scale {scale} is {tuple(level.shape)}, beside a finest one of {tuple(levels[0].shape)}"
                f" it must be {expected}: give the images finest first, as td.pyramid(images) does"
            )


def plant(root: nn.Module, modules: Mapping[str, nn.Module | torch.Tensor]) -> None:
    """Register modules, parameters and buffers under their dotted paths, making containers on the way.

    A container whose children are numbered 0..n-1 is a `Sequential`, any other a `ModuleDict`, so that both
    `td.layer4[0]` and `td.merge["16"]` work; one with names that no `ModuleDict` takes (`keys`) is a plain `Module`.
    """
    children: dict[str, dict[str, nn.Module | torch.Tensor]] = {}
    for path, module in modules.items():
        first, _, rest = path.partition(".")
        children.setdefault(first, {})[rest] = module
    for name, inner in children.items():
        leaf = inner.pop("", None)
        if isinstance(leaf, nn.Parameter):
            root.register_parameter(name, leaf)
        elif isinstance(leaf, torch.Tensor):
            root.register_buffer(name, leaf)
        elif leaf is not None:
            root.add_module(name, leaf)
        if not inner:
            continue
        container = root._modules.get(name)
        if container is None:
            names = list(dict.fromkeys(path.partition(".")[0] for path in inner))
            numbered = names == [str(i) for i in range(len(names))]
            fits = not any(hasattr(nn.ModuleDict, name) for name in names)
            container = nn.Sequential() if numbered else nn.ModuleDict() if fits else nn.Module()
            root.add_module(name, container)
        plant(container, inner)
