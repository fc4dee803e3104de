"""What closes the gap of a top-down network to its bottom-up one: a teacher, kept weights, a wider head."""

from __future__ import annotations

from functools import partial

from td_compiler.benchmarks.lab.statistics import difference_of_means, verdict
from td_compiler.benchmarks.lab.table import Arm, Setting
from td_compiler.benchmarks.show.findings import judged, paired, right
from td_compiler.benchmarks.show.tables import Cell, Table, mean_and_deviation

__all__ = ["gap_table"]

_WORDS = {"supported": "helps", "contradicted": "does not help"}


def gap_table(setting: Setting) -> Table | None:
    """Networks that differ from another one in what helps them alone, beside it; None where there are none."""
    pairs = [(arm, plain) for arm in setting.arms if (plain := _plain(setting, arm)) is not None]
    if not pairs:
        return None
    shown = {id(plain): _row(setting, plain, None) for _, plain in pairs}
    shown |= {id(arm): _row(setting, arm, plain) for arm, plain in pairs}
    return Table(
        title=f"{setting.title}: what closes the gap to BU",
        columns=("network", "accuracy (%)", "less BU (points)", "gain (points)", "runs", "verdict"),
        rows=tuple(shown[id(arm)] for arm in setting.arms if id(arm) in shown),
        note="Gain: over the same network without what helps it. Differences are paired by seed, with their 95 %"
        " intervals by bootstrap over runs and images. teacher=bu: half the loss is the divergence from BU's scores at"
        f" temperature 4; weights=bu: the training starts with BU's weights, where shapes fit. {setting.recipe}",
    )


def _plain(setting: Setting, arm: Arm) -> Arm | None:
    """The same network without a teacher, kept weights and a wider head, trained by the same recipe."""
    if not arm.help and not _wide(arm):
        return None
    label = ", ".join(part for part in arm.label.split(", ") if part not in {*arm.help, *_wide(arm)})
    return setting.arm(label, beside=arm)


def _wide(arm: Arm) -> list[str]:
    return [part for part in arm.label.split(", ") if part.startswith("head_width=")]


def _row(setting: Setting, arm: Arm, plain: Arm | None) -> tuple[Cell, ...]:
    bottom_up = setting.arm("BU", beside=arm)
    accuracy = mean_and_deviation(arm.values("accuracy"), scale=100)
    gap = _difference(arm, bottom_up) if bottom_up else None
    if plain is None:
        return (setting.name(arm), accuracy, gap, None, len(arm.runs), None)
    reached, seeds = bottom_up.values("accuracy") if bottom_up else [], paired(arm, plain)
    found = judged(setting, arm, seeds, reached, None, partial(_gain, arm, plain, seeds))
    tested = found.verdict != "not tested"
    gain = found.found if tested else _difference(arm, plain)
    words = _WORDS.get(found.verdict, found.verdict) + ("" if tested else f": {found.found}")
    return (setting.name(arm), accuracy, gap, gain, len(seeds), words)


def _gain(arm: Arm, plain: Arm, seeds: list[int]) -> tuple[str, str, int]:
    found = difference_of_means(right(arm, seeds), right(plain, seeds))
    return found.text(), verdict(found, above=0.0), found.images


def _difference(one: Arm, other: Arm) -> str | None:
    """Paired by seed, with its interval if there are two pairs."""
    seeds = paired(one, other)
    if not seeds:
        return None
    ours, theirs = right(one, seeds), right(other, seeds)
    if len(seeds) == 1:
        return f"{100 * (ours.mean() - theirs.mean()):+.2f}"
    return difference_of_means(ours, theirs).text()
