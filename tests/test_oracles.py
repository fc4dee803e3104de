"""The oracles of `tests/oracles.py` at a size for every day, and that they are sound themselves."""

from __future__ import annotations

import pytest
import torch

from tests import oracles
from tests.snapshots import FILTERS, fill
from tests.support.by_hand import TopDownByHand
from tests.support.recipes import Recipe, Stage, Stem, Unit, draw
from tests.support.writing import MEAN, STD, build, draw_style, write

SHARDS, RECIPES, STYLED = 4, 6, 8


def nothing_bad(oracle: str, seeds: range) -> None:
    tally = oracles.run(getattr(oracles, oracle), seeds, lambda outcome: None)
    lines = [f"seed {bad.seed}: {bad.result}: {bad.why[:200]}\n    {bad.what}" for bad in tally.bad]
    assert not tally.bad, "\n".join([str(tally), *lines])


@pytest.mark.parametrize("shard", range(SHARDS))
def test_recipes_become_what_a_person_would_write(shard: int) -> None:
    nothing_bad("recipes", range(shard * RECIPES, (shard + 1) * RECIPES))


@pytest.mark.parametrize("shard", range(SHARDS))
def test_two_ways_to_write_a_network_are_one(shard: int) -> None:
    nothing_bad("styles", range(shard * STYLED, (shard + 1) * STYLED))


def _plain(size: tuple[int, int, int], down: str, *stages: list[tuple[int, int]]) -> Recipe:
    units = [tuple(Unit("conv", width, kernel) for width, kernel in stage) for stage in stages]
    made = tuple(Stage(given, down if i else "") for i, given in enumerate(units))
    return Recipe(size, made, head="conv", classes=10)


def _residual(size: tuple[int, int, int], stem: Stem, blocks: int, *widths: int) -> Recipe:
    stages = tuple(Stage((Unit("basic", width),) * blocks, "stride" if i else "") for i, width in enumerate(widths))
    return Recipe(size, stages, stem, pre=True, classes=10)


# SPEC 4: recipe, then trainable parameters under mirror, uniform and reversed
PAPERS = {
    "lenet_fc": (_plain((1, 28, 28), "max", [(6, 5)], [(16, 5)], [(32, 3)]), (14_452, 23_486, 57_846)),
    "nin_light": (
        _plain((1, 28, 28), "overlap", [(48, 5), (40, 1), (24, 1)], [(48, 5), (48, 1), (48, 1)], [(48, 3), (48, 1)]),
        (212_670, 214_734, 214_206),
    ),
    "nin": (
        _plain(
            (3, 32, 32), "overlap", [(192, 5), (160, 1), (96, 1)], [(192, 5), (192, 1), (192, 1)], [(192, 3), (192, 1)]
        ),
        (3_368_478, 3_397_470, 3_388_446),
    ),
    "resnet32": (_residual((3, 32, 32), Stem(16), 5, 16, 32, 64), (528_042, 319_626, 563_274)),
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_hand_reaches_the_published_parameters(name: str) -> None:
    recipe, expected = PAPERS[name]
    found = [sum(p.numel() for p in TopDownByHand(recipe, filters).parameters()) for filters in FILTERS]
    assert tuple(found) == expected


def test_the_hand_reaches_the_imagenette_network() -> None:
    recipe = _residual((3, 128, 128), Stem(32, pool=True), 2, 32, 64, 128, 256)
    assert sum(p.numel() for p in TopDownByHand(recipe, stem="leading").parameters()) == 4_966_538


def test_styles_write_one_bottom_up_network() -> None:
    """The oracle's own ground: whatever the style, the source computes the same, forward and backward."""
    for seed in range(40):
        recipe, style = draw(seed, ("plain", "post", "pre", "mixed")), draw_style(seed)
        images = torch.rand(2, *recipe.size, dtype=torch.float64)
        seen = (images - MEAN) / STD if style.normalised else images
        plain, styled = (fill(net.double()) for net in (build(recipe), build(recipe, style)))
        torch.testing.assert_close(styled(images), plain(seen), msg=lambda text, s=seed: f"seed {s}: {text}")  # type: ignore[misc]
        styled.train()(images).sum().backward()


def test_a_text_is_that_of_its_seed() -> None:
    for seed in range(20):
        recipe, style = draw(seed, ("mixed",)), draw_style(seed)
        assert write(recipe, style) == write(draw(seed, ("mixed",)), draw_style(seed))
    assert len({write(recipe, draw_style(seed)) for seed in range(20)}) == 20
