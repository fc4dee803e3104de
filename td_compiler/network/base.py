"""The top-down network: a module tree under the user's names and a short list of graph segments that runs it."""

from __future__ import annotations

import itertools
import linecache
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import fx, nn

from td_compiler.graph.names import is_attribute
from td_compiler.graph.pickled import from_pickle, to_pickle, with_targets
from td_compiler.layers.pyramid import Pyramid, factor_pair
from td_compiler.network.checkpointing import StageKey, chosen_stages, run_checkpointed

if TYPE_CHECKING:
    from td_compiler.report.report import Report

__all__ = ["HEAD", "RESERVED", "Segment", "StageMaps", "TopDownNet", "carried", "handed_on", "plant"]


@dataclass
class Segment:
    """One step of a top-down network: the layers of one scale, or the head.

    Attributes:
        name: `stage16` for the stage at scale 16, `head` for the head, `prologue` for what precedes the pyramid.
        scale: the factor by which this stage's maps are smaller than the image; 1 for the head.
        graph: placeholders `x` (the map so far; absent in the first stage), `older` (the map before it, only where
            cells read two) and `image` (the pyramid's level at this scale; absent in the head), or, in a prologue,
            `images`. Its output is the stage's map, or that and the one before it, where the next stage reads two.
            Every `call_module` and `get_attr` target is a path in the network. The `unit` of a node's plan is the path
            of the unit that it belongs to (`layer3.0`, `entry.16`, `merge.16`), or "" where a unit has no path.
            It is compiled when the segment is made, and not read again.
        inputs: the graph's placeholders by name: some of `x`, `older` and `image`, in this order.
    """

    name: str
    scale: int | tuple[int, int]
    graph: fx.Graph
    inputs: tuple[str, ...] = field(init=False)
    _function: Callable[..., Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Here, not at the first run: under torch.compile that run is traced, and a graph's code cannot be.
        self.inputs = tuple(str(node.target) for node in self.graph.find_nodes(op="placeholder"))
        self._function = _compile(self.graph, self.name)

    def run(self, network: nn.Module, **inputs: torch.Tensor) -> Any:
        """Run this segment with the network's modules on the inputs that it names.

        Returns:
            Its map, or (its map, the one before it) where the next stage reads two (SPEC 2.13).
        """
        return self._function(network, *(inputs[name] for name in self.inputs))

    def __getstate__(self) -> dict[str, Any]:
        """Functions compiled at run time do not pickle: they are made anew from the graph."""
        state = {name: value for name, value in self.__dict__.items() if name != "_function"}
        state["graph"] = to_pickle(self.graph)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.graph = from_pickle(state["graph"])
        self._function = _compile(self.graph, self.name)


_compiled = itertools.count()  # makes every function's name its own, also in several threads


def handed_on(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The maps that a segment's graph puts out, newest first: one, or two where the next stage reads two."""
    made: Any = graph.output_node().args[0]
    return tuple(made) if isinstance(made, (tuple, list)) else (made,)


def carried(made: Any) -> dict[str, Any]:
    """What a segment put out, one map or two, under the names under which the next one reads it."""
    return dict(zip(("x", "older"), made if isinstance(made, tuple) else (made,), strict=False))


def _compile(graph: fx.Graph, name: str) -> Callable[..., Any]:
    graph, expressions = _quote_paths(graph)
    code = graph.python_code("self")
    text = code.src
    for place, expression in expressions.items():
        text = text.replace(place, expression)
    filename = f"<top-down {name} {next(_compiled)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace = dict(code.globals)
    exec(compile(text, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    weakref.finalize(function, linecache.cache.pop, filename, None).atexit = False
    return function


def _quote_paths(graph: fx.Graph) -> tuple[fx.Graph, dict[str, str]]:
    """A graph whose paths can stand in Python text, and the expressions for those that could not; torch quotes none.

    A layer's name is data, of a checkpoint or a configuration: a keyword, a line break, quotes and brackets.
    """
    targets = {str(node.target) for node in graph.nodes if node.op in _BY_PATH}
    odd = sorted(path for path in targets if any(map(_is_odd, path.split("."))))
    if not odd:
        return graph, {}
    start = "path"
    while any(target.startswith(start) for target in targets):
        start += "_"
    places = {path: f"{start}{i}_" for i, path in enumerate(odd)}
    copy = with_targets(
        graph, lambda node: places.get(str(node.target), node.target) if node.op in _BY_PATH else node.target
    )
    expressions = {}
    for path, place in places.items():
        expression = "self"
        for name in path.split("."):
            expression = f"getattr({expression}, {name!r})"
        expressions[f"self.{place}"] = expression
    return copy, expressions


_BY_PATH = ("call_module", "get_attr")


def _is_odd(name: str) -> bool:
    return not name.isdecimal() and not is_attribute(name)


class StageMaps(nn.ModuleDict):
    """What `td.features` is: called on images it returns the map after every stage.

    It is a module, not a method, because many networks keep their layers under the name `features`, where they stay.
    """

    def __init__(self, network: TopDownNet) -> None:
        super().__init__()
        self.__dict__["_network"] = network  # past nn.Module's registration: the network is no part of its own part

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The map after every stage, coarse to fine, each (N, C, H / scale, W / scale), for images (N, C, H, W)."""
        network: TopDownNet = self.__dict__["_network"]
        return network._stage_maps(network.pyramid(images))


class PreparedPyramid(Pyramid):
    """A pyramid of images that the network's prologue has prepared, once, before they are scaled (SPEC 1.0)."""

    def __init__(self, network: TopDownNet, pyramid: Pyramid) -> None:
        super().__init__(pyramid.scales, pyramid.downsample)
        self.__dict__["_network"] = network  # past nn.Module's registration: the network is no part of its own part

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The prepared images at every scale, finest first."""
        network: TopDownNet = self.__dict__["_network"]
        assert network.prologue is not None
        return super().forward(network.prologue.run(network, images=images))


class TopDownNet(nn.Module):
    """A top-down network (paper section 3): runs coarse to fine over an image pyramid, then classifies.

    Made by :func:`td_compiler.reverse`. It trains, moves, saves and copies like any module; its parameters keep the
    names that they have in the source network, beside `entry`, `transition`, `merge` and `upsample` for what is new.

    Attributes:
        pyramid: the module that turns images (N, C, H, W) into the list of scaled images, finest first, after the
            prologue.
        prologue: what is done to the images once, before they are scaled (SPEC 1.0); None where nothing is.
        features: called on images (N, C, H, W), returns the map after every stage, coarse to fine.
        segments: the stages, coarse to fine, then the head.
        report: what was found in the source and done to it, stage by stage.
        checkpointed: the names of the stages that :meth:`checkpoint_stages` chose.
    """

    segments: list[Segment]
    report: Report
    prologue: Segment | None
    pyramid: Pyramid
    features: StageMaps
    checkpointed: frozenset[str] = frozenset()

    def __init__(
        self,
        modules: Mapping[str, nn.Module | torch.Tensor],
        segments: Sequence[Segment],
        pyramid: Pyramid,
        report: Report,
        prologue: Segment | None = None,
    ) -> None:
        super().__init__()
        self.segments = list(segments)
        self.report = report
        self.prologue = prologue
        self.pyramid = pyramid if prologue is None else PreparedPyramid(self, pyramid)
        self.add_module("features", StageMaps(self))
        plant(self, modules)
        for name in dict.fromkeys(path.partition(".")[0] for path in modules):
            if name in self._modules:  # `features` was there before: parameters stand in the order in which they run
                self._modules[name] = self._modules.pop(name)

    @property
    def scales(self) -> tuple[int | tuple[int, int], ...]:
        """The pyramid's scales, finest first, e.g. (1, 2, 4)."""
        return self.pyramid.scales

    @property
    def parts(self) -> list[Segment]:
        """All that runs, in order: the prologue, where there is one, the stages, coarse to fine, the head."""
        return self.segments if self.prologue is None else [self.prologue, *self.segments]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores, of the source network's output shape, for images (N, C, H, W)."""
        return self.segments[-1].run(self, x=self._stage_maps(self.pyramid(images))[-1])

    def forward_pyramid(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Class scores from given images, one per scale, finest first.

        Raises:
            ValueError: if there are not as many levels as scales, or their sizes are not those of the scales.
        """
        return self.segments[-1].run(self, x=self.stage_maps(levels)[-1])

    def stage_maps(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The map after every stage, coarse to fine, from given images, one per scale, finest first.

        Raises:
            ValueError: if there are not as many levels as scales, or a level has not the size of its scale (SPEC 2.1)
                or other channels or images than the finest one.
        """
        _check_levels(levels, self.scales)
        return self._stage_maps(levels)

    def _stage_maps(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = []
        state: dict[str, torch.Tensor] = {}
        for segment, image in zip(self.segments[:-1], reversed(levels), strict=True):
            state = carried(self.run_segment(segment, image=image, **state))
            maps.append(state["x"])
        return maps

    def run_segment(self, segment: Segment, **inputs: torch.Tensor) -> Any:
        """Run one of the segments (:meth:`Segment.run`), checkpointed where that is asked for and of use."""
        if segment.name in self.checkpointed and torch.is_grad_enabled():
            return run_checkpointed(segment, self, **inputs)
        return segment.run(self, **inputs)

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
        *("forward_features", "forward_head", "get_classifier", "reset_classifier"),
        *dir(TopDownNet),
        *TopDownNet.__annotations__,
    }
)
"""Names at a top-down network's top that are its own, so that nothing of the source can stand there."""


def _check_levels(levels: Sequence[torch.Tensor], scales: Sequence[int | tuple[int, int]]) -> None:
    if len(levels) != len(scales):
        raise ValueError(f"{len(levels)} images for {len(scales)} scales {tuple(scales)}: give one per scale")
    if torch.compiler.is_compiling():
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
