"""Recipes: what a bottom-up CNN consists of, without a word on how it is written; drawn at random (SPEC 9.2, 9.3)."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["RESIDUAL", "Recipe", "Stage", "Stem", "Unit", "changes", "draw"]

RESIDUAL = ("basic", "bottleneck", "gated")


@dataclass(frozen=True)
class Unit:
    """A convolution with its norm and activation, or a block.

    Attributes:
        kind: `conv`; residual blocks `basic` (two convolutions), `bottleneck` (1x1, k x k, 1x1) and `gated` (a basic
            one with squeeze and excitation); `inception` (a 1x1 and a k x k branch, concatenated), `shuffle` (half of
            the channels through a convolution, then shuffled).
        width: the channels that it puts out.
        kernel: of its spatial convolutions.
        inner: the width inside a bottleneck, or of a gate.
    """

    kind: str
    width: int
    kernel: int = 3
    inner: int = 0


@dataclass(frozen=True)
class Stem:
    """A convolution before the first stage, and perhaps a max-pooling behind it, 3x3 with stride 2."""

    width: int
    kernel: int = 3
    stride: int = 1
    pool: bool = False

    @property
    def downsamplings(self) -> int:
        """How often it halves the map."""
        return (self.stride > 1) + self.pool


@dataclass(frozen=True)
class Stage:
    """Units at one scale.

    Attributes:
        units: in order.
        down: how the map comes to this scale: `max`, `average` (2x2 poolings), `overlap` (3x3 max-pooling with stride
            2), `stride` (of the first unit's spatial convolution); "" for the first stage.
        drop: whether a dropout follows the pooling.
    """

    units: tuple[Unit, ...]
    down: str = ""
    drop: bool = False

    @property
    def width(self) -> int:
        """The width of its first unit."""
        return self.units[0].width


@dataclass(frozen=True)
class Recipe:
    """A bottom-up network.

    Attributes:
        size: of the images (C, H, W).
        stages: finest first.
        stem: what stands before the first of them.
        pre: whether norm and activation stand before the convolutions, a norm and activation at the end, and the
            stem's convolution is bare.
        norm: whether there are batch norms.
        bias: whether convolutions have biases.
        act: `relu`, `leaky` or `silu`.
        valid: whether plain convolutions go without padding.
        head: `linear` (global average, linear layer), `conv` (1x1 convolution with norm and activation, global
            average) or `flatten` (linear layer on the flattened last map).
        classes: how many scores there are.
    """

    size: tuple[int, int, int]
    stages: tuple[Stage, ...]
    stem: Stem | None = None
    pre: bool = False
    norm: bool = True
    bias: bool = True
    act: str = "relu"
    valid: bool = False
    head: str = "linear"
    classes: int = 7


def draw(seed: int, kinds: tuple[str, ...] = ("plain", "post", "pre")) -> Recipe:
    """The recipe of a seed.

    Args:
        seed: any number.
        kinds: families to draw from: `plain`, `post` and `pre` (residual), `mixed` (blocks of every kind).
    """
    pick = random.Random(seed)
    kind = pick.choice(kinds)
    count = pick.choice((2, 3, 3, 4))
    stem = _stem(pick, kind)
    downs = count - 1 + (stem.downsamplings if stem else 0)
    side = pick.randrange(4, 9) << downs
    size = pick.choice((1, 3, 3, 5)), side + pick.choice((0, 0, 1, 3)), side + pick.choice((0, 0, 5))
    valid = kind == "plain" and count < 4 and pick.random() < 0.3
    size = (size[0], size[1] + 48 * valid, size[2] + 48 * valid)  # a map must be left
    stages = tuple(_stage(pick, kind, i) for i in range(count))
    if stages[-1].units[-1].kind == "conv" and stages[-1].units[-1].kernel == 1:  # it could be read as the head's
        stages = (*stages[:-1], Stage(stages[-1].units[:1], stages[-1].down, stages[-1].drop))
    heads = ("linear", "linear", "conv", "flatten") if kind == "plain" else ("linear",)
    return Recipe(
        size,
        stages,
        stem,
        pre=kind == "pre",
        norm=pick.random() < 0.8,
        bias=pick.random() < 0.5,
        act=pick.choice(("relu", "relu", "leaky", "silu")),
        valid=valid,
        head=pick.choice(heads),
    )


def changes(recipe: Recipe) -> list[bool]:
    """Whether a unit strides or has another width than what it reads, for every unit."""
    width, found = recipe.stem.width if recipe.stem else recipe.size[0], []
    for stage in recipe.stages:
        for i, unit in enumerate(stage.units):
            found.append((stage.down == "stride" and i == 0) or unit.width != width)
            width = unit.width
    return found


def _stem(pick: random.Random, kind: str) -> Stem | None:
    width, kernel = pick.choice((4, 8, 12)), pick.choice((3, 3, 5, 7))
    if kind == "plain":  # a plain network's first convolution is a stem only where it strides
        return Stem(width, kernel, 2, pick.random() < 0.3) if pick.random() < 0.3 else None
    return Stem(width, kernel, pick.choice((1, 1, 2)), pick.random() < 0.3)


def _stage(pick: random.Random, kind: str, index: int) -> Stage:
    width, kernel = pick.choice((4, 8, 12, 16, 24)), pick.choice((3, 3, 5))
    if kind == "plain":
        first = Unit("conv", width, kernel)
        rest = [
            Unit("conv", pick.choice((width, 4, 8, 20)), pick.choice((kernel, 1))) for _ in range(pick.randrange(3))
        ]
        down = pick.choice(("max", "average", "overlap", "stride"))
        return Stage((first, *rest), down if index else "", bool(index) and down != "stride" and pick.random() < 0.3)
    count = pick.choice((1, 2, 3))
    if kind == "mixed":
        block = pick.choice(("basic", "bottleneck", "gated", "inception", "shuffle"))
        down = "max" if block in {"inception", "shuffle"} else pick.choice(("stride", "stride", "average"))
    else:
        block, down = pick.choice(("basic", "basic", "bottleneck")), "stride"
    units = (Unit(block, width, kernel, {"bottleneck": width // 4, "gated": 4}.get(block, 0)),) * count
    if block in {"inception", "shuffle"}:  # neither changes a width
        units = (Unit("conv", width, kernel), *units)
    return Stage(units, down if index else "")
