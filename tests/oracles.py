"""Two oracles that share nothing with the passes: SPEC 9.2, two ways to write one network, and 9.3, from the recipe.

    python -m tests.oracles styles 300        # 300 recipes, each written in three styles, in a random arrangement
    python -m tests.oracles recipes 1000      # 1,000 recipes in every arrangement
    python -m tests.oracles recipes 1 --seed 17 --show

Every case follows from its seed. What is not right is printed with it; the exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from td_compiler import ConversionError, TopDownNet, reverse
from tests.snapshots import FILTERS, fill
from tests.support.by_hand import TopDownByHand
from tests.support.recipes import Recipe, changes, draw
from tests.support.writing import MEAN, PLAIN, STD, Style, build, draw_style, explain, last_map, write

__all__ = ["Outcome", "Tally", "recipes", "styles"]

STYLES = 3
_TOLERANCE = 1e-5  # of the largest score


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        result: `right`, `wrong`, `refused` or `crash`.
        why: in words, for what is not right.
        seed: of the case.
        what: recipe, style and options.
        text: the source network.
    """

    result: str
    why: str
    seed: int
    what: str
    text: str = field(repr=False)


class Tally:
    """Outcomes, counted; those that are not right, kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.bad: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        self.counts[outcome.result] += 1
        if outcome.result != "right":
            self.bad.append(outcome)

    def __str__(self) -> str:
        return ", ".join(f"{self.counts[result]} {result}" for result in ("right", "wrong", "refused", "crash"))


def recipes(seed: int) -> Iterator[Outcome]:
    """SPEC 9.3: a recipe, written plainly, against the top-down network written by hand, in every arrangement."""
    pick, recipe = random.Random(seed), draw(seed)
    options = {
        "merge": pick.choice(("combined", "combined", "add", "concat")),
        "upsample": pick.choice(("nearest", "nearest", "bilinear")),
        "stem": pick.choice(("trailing", "trailing", "leading")),
    }
    for filters in FILTERS:
        chosen = {"filters": filters, **options}
        yield _judge(
            seed, recipe, PLAIN, chosen, functools.partial(TopDownByHand, recipe, **chosen, last_map=last_map(recipe))
        )


def styles(seed: int, count: int = STYLES) -> Iterator[Outcome]:
    """SPEC 9.2: a recipe in several styles, against the plain one, in one arrangement."""
    pick = random.Random(seed)
    recipe = draw(seed, ("plain", "post", "pre", "mixed", "mixed"))
    options = {"filters": pick.choice(FILTERS), "merge": pick.choice(("combined", "add", "concat"))}

    def plain() -> nn.Module:
        return reverse(build(recipe), input_size=recipe.size, **options)

    for i in range(count):
        style = draw_style(seed * 1000 + i)
        if style.units == "inline" and _is_open(recipe):
            style = replace(style, units="classes")
        yield _judge(seed, recipe, style, options, plain)


def _is_open(recipe: Recipe) -> bool:
    """Whether SPEC leaves open what the units of a network are where its blocks have no modules.

    It cuts on both sides of an activation (SPEC 1.2), and in two pre-activation networks nothing but modules says to
    which side it belongs: without norms and identity shortcuts the same graph is one whose blocks end with activations;
    norm and activation between the stem's convolution and a block with a projection can be the stem's (SPEC 1.4).
    """
    changed = changes(recipe)
    in_doubt = recipe.stem is not None and not recipe.stem.pool and changed[0]
    return recipe.pre and (in_doubt or (not recipe.norm and all(changed)))


def _judge(
    seed: int, recipe: Recipe, style: Style, options: dict[str, Any], expected: Callable[[], nn.Module]
) -> Outcome:
    what = f"{recipe}, {explain(style)}, {options}"
    text = write(recipe, style)
    torch.manual_seed(seed)
    try:
        right = expected()
    except ConversionError as error:
        return Outcome("refused", f"already the plain one: {error}", seed, what, text)
    except Exception as error:
        return Outcome("crash", f"already the plain one: {type(error).__name__}: {error}", seed, what, text)
    try:
        td = reverse(build(recipe, style), input_size=recipe.size, **options)
    except ConversionError as error:
        return Outcome("crash" if "defect of td-compiler" in str(error) else "refused", str(error), seed, what, text)
    except Exception as error:
        return Outcome("crash", f"{type(error).__name__}: {error}", seed, what, text)
    try:
        why = next(_differences(td, right, recipe, style), "")
    except Exception as error:
        return Outcome("crash", f"in use: {type(error).__name__}: {error}", seed, what, text)
    return Outcome("wrong" if why else "right", why, seed, what, text)


@torch.no_grad()
def _differences(td: TopDownNet, right: nn.Module, recipe: Recipe, style: Style) -> Iterator[str]:
    found, expected = (sum(p.numel() for p in net.parameters()) for net in (td, right))
    if found != expected:
        yield f"{found} parameters, should be {expected}"
    fill(td.double())
    fill(right.double())
    channels, height, width = recipe.size
    for batch, side in ((1, (height, width)), (2, (height + 3, width - 1))):
        if recipe.head == "flatten" and batch > 1:
            continue  # made for one size
        generator = torch.Generator().manual_seed(batch)
        images = torch.rand(batch, channels, *side, dtype=torch.float64, generator=generator)
        seen = (images - MEAN) / STD if style.normalised else images
        got, want = td(images), right(seen)
        if got.shape != want.shape:
            yield f"scores of shape {tuple(got.shape)}, should be {tuple(want.shape)}"
        elif not (off := ((got - want).abs().max() / want.abs().max().clamp(min=1e-3)).item()) < _TOLERANCE:
            yield f"scores off by {off:.1e} of the largest for images of {side[0]}x{side[1]}"


def run(oracle: Callable[[int], Iterator[Outcome]], seeds: range, show: Callable[[Outcome], None]) -> Tally:
    """Run an oracle over seeds; `show` is given every outcome that is not right."""
    tally, started = Tally(), time.monotonic()
    for i, seed in enumerate(seeds, 1):
        for outcome in oracle(seed):
            tally.add(outcome)
            if outcome.result != "right":
                show(outcome)
        if i % 100 == 0:
            print(f"{i} recipes, {time.monotonic() - started:.0f} s: {tally}", file=sys.stderr, flush=True)
    return tally


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("oracle", choices=["styles", "recipes"])
    parser.add_argument("count", type=int, help="recipes to draw")
    parser.add_argument("--seed", type=int, default=0, help="the first recipe's")
    parser.add_argument("--show", action="store_true", help="print the source of what is not right")
    given = parser.parse_args()

    def show(outcome: Outcome) -> None:
        print(f"seed {outcome.seed}: {outcome.result}: {outcome.why}\n    {outcome.what}", flush=True)
        if given.show:
            print(outcome.text)

    warnings.simplefilter("ignore")
    oracle = {"styles": styles, "recipes": recipes}[given.oracle]
    tally = run(oracle, range(given.seed, given.seed + given.count), show)
    print(f"{given.oracle}: {tally}")
    return bool(tally.bad)


if __name__ == "__main__":
    sys.exit(main())
