"""Top-down networks written from a recipe, by hand: SPEC 2 in plain PyTorch, for the recipes that it has rules for.

Nothing here is shared with the passes, nor with the layers that they put in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.recipes import Recipe, Stage, Unit

__all__ = ["TopDownByHand"]

_ACTS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.1), "silu": nn.SiLU}


def gaussian(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Images (N, C, H, W) made smaller by a factor, anti-aliased (SPEC 3, `gaussian`)."""
    rows, columns = (_weights(n, factor).to(images) for n in images.shape[2:])
    return torch.einsum("ih,nchw,jw->ncij", rows, images, columns)


def _weights(length: int, factor: int) -> torch.Tensor:
    """(output pixels, input pixels)."""
    if factor == 1:
        return torch.eye(length, dtype=torch.float64)
    centres = (torch.arange(-(-length // factor), dtype=torch.float64) + 0.5) * factor - 0.5
    distance = (centres[:, None] - torch.arange(length, dtype=torch.float64)).abs()
    weights = torch.exp(-(distance**2) / (2 * (factor / 2) ** 2)) * (distance < 1.5 * factor)
    return weights / weights.sum(1, keepdim=True)


class Manner:
    """How a network builds its layers."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def conv(self, inputs: int, outputs: int, kernel: int) -> nn.Module:
        """A bare convolution that keeps the size of its map."""
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=self.recipe.bias)

    def norm(self, width: int) -> list[nn.Module]:
        """A batch norm, if the network has any."""
        return [nn.BatchNorm2d(width)] if self.recipe.norm else []

    def act(self) -> nn.Module:
        """An activation."""
        return _ACTS[self.recipe.act]()

    def unit(self, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        """Convolution, norm and activation in the network's order."""
        if self.recipe.pre:
            return nn.Sequential(*self.norm(inputs), self.act(), self.conv(inputs, outputs, kernel))
        return nn.Sequential(self.conv(inputs, outputs, kernel), *self.norm(outputs), self.act())


class Grow(nn.Module):
    """Upsampling to the size of the level at hand; does nothing to a map that has it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.options = {"mode": how, **({"align_corners": False} if how == "bilinear" else {})}
        self.size: tuple[int, int] = (0, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[2:] == self.size else F.interpolate(x, self.size, **self.options)


class Residual(nn.Module):
    """A residual block; with `grow` the first one of a stage, which brings the map to its size and width."""

    def __init__(self, manner: Manner, inputs: int, unit: Unit, width: int, inner: int, grow: nn.Module) -> None:
        super().__init__()
        kernel, pre = unit.kernel, manner.recipe.pre
        sizes = [(inputs, width, kernel), (width, width, kernel)]
        if unit.kind == "bottleneck":
            sizes = [(inputs, inner, 1), (inner, inner, kernel), (inner, width, 1)]
        self.pre, self.after = nn.Sequential(), nn.Sequential()
        steps: list[nn.Module] = []
        for i, (before, after, size) in enumerate(sizes):
            if pre:
                order = [*manner.norm(before), manner.act()]
                if i == 0:
                    self.pre = nn.Sequential(*order)
                else:
                    steps += order
            if size > 1:
                steps.append(grow)  # before whatever sees more than a pixel; once grown, it stays so
            steps.append(manner.conv(before, after, size))
            if not pre:
                steps += [*manner.norm(after), *([manner.act()] if i < len(sizes) - 1 else [])]
        if not pre:
            self.after = nn.Sequential(manner.act())
        self.steps = nn.Sequential(*steps)
        self.projection: nn.Module | None = None
        if inputs != width:
            self.projection = nn.Sequential(manner.conv(inputs, width, 1), *([] if pre else manner.norm(width)))
        self.grow = grow

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read = self.pre(x)
        short = x if self.projection is None else self.projection(read)
        y: torch.Tensor = self.after(self.grow(short) + self.steps(read))
        return y


class Level(nn.Module):
    """What runs at one scale: transition, entry, merge and body."""

    def __init__(self, grow: Grow, merge: str) -> None:
        super().__init__()
        self.grow, self.how = grow, merge
        self.transition: nn.Module | None = None
        self.entry: nn.Module | None = None
        self.merge: nn.Module = nn.Sequential()
        self.body = nn.Sequential()

    def forward(self, x: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor:
        self.grow.size = tuple(image.shape[2:])  # type: ignore[assignment]
        if x is None:
            y: torch.Tensor = self.body(image if self.entry is None else self.entry(image))
            return y
        assert self.entry is not None
        x = self.grow(x if self.transition is None else self.transition(x))
        e = self.entry(image)
        if self.how == "add":
            y = self.body(x + e)
        else:
            y = self.body(self.merge(torch.cat([x if self.how == "concat" else x + e, e], 1)))
        return y


class TopDownByHand(nn.Module):
    """The top-down network of a recipe of plain or residual stages."""

    def __init__(
        self,
        recipe: Recipe,
        filters: str = "mirror",
        merge: str = "combined",
        upsample: str = "nearest",
        stem: str = "trailing",
        last_map: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.recipe, self.manner, self.last_map = recipe, Manner(recipe), last_map
        self.common = self._median() if filters == "uniform" else 0
        empty: list[Stage | None] = [None] * (recipe.stem.downsamplings if recipe.stem else 0)
        coarse_first: list[Stage | None] = [*reversed(recipe.stages)]
        natives = [*empty, *coarse_first] if stem == "leading" else [*coarse_first, *empty]
        bodies = list(natives)
        if filters == "reversed":
            in_order = iter(recipe.stages)
            bodies = [next(in_order) if native else None for native in natives]
        self.levels = nn.ModuleList()
        width = 0
        for i, (native, body) in enumerate(zip(natives, bodies, strict=True)):
            before = natives[i - 1] if i else None
            strided = before is not None and body is not None and before.down == "stride"
            level, width = self._level(width, body, native, strided, bodies, merge, Grow(upsample))
            self.levels.append(level)
        self.head = self._head(width)

    def _median(self) -> int:
        widths = sorted(stage.width for stage in self.recipe.stages)
        return widths[(len(widths) - 1) // 2]

    def _level(
        self, inputs: int, body: Stage | None, native: Stage | None, strided: bool, bodies: Sequence[Stage | None],
        merge: str, grow: Grow,
    ) -> tuple[Level, int]:  # fmt: skip
        """The level after a map of `inputs` channels (0: the coarsest), and the width of its map."""
        level, manner, stem = Level(grow, merge), self.manner, self.recipe.stem
        width = self._width(body, bodies, inputs)
        units = list(body.units) if body else []
        kernel = native.units[0].kernel if native else 0  # the scale's own: bodies move under `reversed`
        units = [Unit(u.kind, u.width, kernel if u.kernel > 1 and kernel else u.kernel, u.inner) for u in units]
        channels = self.recipe.size[0]
        if stem:
            conv = manner.conv(channels, width, stem.kernel)
            rest = [] if self.recipe.pre else [*manner.norm(width), manner.act()]
            level.entry = nn.Sequential(conv, *rest)
        elif inputs:
            level.entry = manner.unit(channels, width, units[0].kernel)
        current = width
        if not inputs and not stem:
            current = channels
        elif inputs and strided:
            level.transition = self._unit(inputs, units.pop(0), grow)
        elif inputs and inputs != width:
            level.transition = manner.unit(inputs, width, 1)
        if inputs and merge != "add":
            level.merge = manner.unit(2 * width, width, 3)
        for unit in units:
            level.body.append(self._unit(current, unit, grow))
            current = self.common or unit.width
        return level, current

    def _width(self, body: Stage | None, bodies: Sequence[Stage | None], inputs: int) -> int:
        """At which the level's entry and merge work."""
        if self.common:
            return self.common
        if body:
            return body.width
        assert self.recipe.stem is not None
        first = next(stage for stage in bodies if stage)
        started = any(len(level.body) for level in self.levels)
        return self.recipe.stem.width if started else first.width

    def _unit(self, inputs: int, unit: Unit, grow: Grow) -> nn.Module:
        width = self.common or unit.width
        if unit.kind == "conv":
            return nn.Sequential(grow, self.manner.unit(inputs, width, unit.kernel))
        return Residual(self.manner, inputs, unit, width, unit.inner * width // unit.width, grow)

    def _head(self, width: int) -> nn.Module:
        manner, classes = self.manner, self.recipe.classes
        if self.recipe.head == "conv":
            return nn.Sequential(manner.unit(width, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        last = [*manner.norm(width), manner.act()] if self.recipe.pre else []
        pixels = self.last_map if self.recipe.head == "flatten" else (1, 1)
        features = width * pixels[0] * pixels[1]
        return nn.Sequential(*last, nn.AdaptiveAvgPool2d(pixels), nn.Flatten(), nn.Linear(features, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor | None = None
        for i, level in enumerate(self.levels):
            x = level(x, gaussian(images, 2 ** (len(self.levels) - 1 - i)))
        scores: torch.Tensor = self.head(x)
        return scores
