"""What the robustness experiment shows: success of attacks, input vulnerability, errors under corruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from td_compiler.benchmarks.experiments.robustness.curves import draw_corruptions, draw_curves, draw_vulnerability
from td_compiler.benchmarks.experiments.robustness.groups import (
    AttackRun,
    AttackRuns,
    attack_settings,
    attacked,
    compared,
    corrupted,
    corruption_settings,
)
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.statistics import FEWEST_RUNS
from td_compiler.benchmarks.lab.table import Arm, Setting
from td_compiler.benchmarks.show.tables import Cell, Figure, Section, Table, mean_and_deviation

__all__ = ["corruption_error", "section"]

# Bounds under which accuracy is commonly reported: CIFAR-10's, and two of MNIST's.
_BOUNDS = {"8/255": 8 / 255, "0.1": 0.1, "0.3": 0.3}


def section(results: Sequence[Result]) -> Section:
    """Tables and figures, one of each kind for every data set, source network and size."""
    tables: list[Table] = []
    figures: list[Figure] = []
    for setting in attack_settings(results):
        runs = attacked(setting)
        tables += [_success_table(setting, runs), *_comparisons(setting)]
        tables += [*_bound_tables(setting, runs), *_vulnerability_tables(setting, runs)]
        figures += [_curve_figure(setting, runs), *_vulnerability_figures(setting, runs)]
    for setting in corruption_settings(results):
        tables.append(_corruption_table(setting))
        figures.append(_corruption_figure(setting))
    return Section(
        title="Robustness",
        intro="The smallest perturbations that make a network misclassify an image that it classifies rightly without"
        " (paper, Exp. 2), and its errors on images under common corruptions.",
        tables=tables,
        figures=figures,
    )


def _networks(runs: AttackRuns) -> list[str]:
    return list(dict.fromkeys(label for networks in runs.values() for label in networks))


def _over_runs(runs: Sequence[AttackRun], value: Callable[[AttackRun], float]) -> Cell:
    """Per cent, over a network's runs."""
    return mean_and_deviation([value(run) for run in runs], 1, 100) if runs else None


def _median(runs: Sequence[AttackRun]) -> Cell:
    medians = [run.median for run in runs]
    reached = [each for each in medians if each is not None]
    return mean_and_deviation(reached) if reached and len(reached) == len(medians) else None


def _success_table(setting: Setting, runs: AttackRuns) -> Table:
    from td_compiler.benchmarks.attacks.attacks import ATTACKS

    labels = _networks(runs)
    rows: list[tuple[Cell, ...]] = []
    for attack, networks in runs.items():
        found = [networks.get(label, ()) for label in labels]
        success = [_over_runs(each, lambda run: run.success) for each in found]
        rows.append((attack, ATTACKS[attack].kind, *success, *map(_median, found)))
    return Table(
        f"Attacks: {setting.title}",
        ("attack", "kind", *(f"{label}: fooled (%)" for label in labels), *(f"{label}: median L2" for label in labels)),
        tuple(rows),
        "Fooled: the share of the images classified rightly for which a perturbation was found. Median L2: within this"
        f" distance half of them are fooled; larger is more robust. {setting.recipe}",
    )


def _comparisons(setting: Setting) -> list[Table]:
    """Every top-down network beside BU, where there are runs enough."""
    tables = []
    first = next(iter(setting.by("attack").values()))
    for arm in first.arms:
        found = compared(setting, arm) if arm.label != "BU" else {}
        rows: list[tuple[Cell, ...]] = [
            (
                attack,
                f"{each.ratio.value:.2f} [{each.ratio.low:.2f}, {each.ratio.high:.2f}]",
                each.p,
                each.mcnemar,
                each.word,
            )
            for attack, each in found.items()
        ]
        if rows:
            tables.append(
                Table(
                    f"{setting.name(arm)} beside BU, image by image: {setting.title}",
                    ("attack", "distance over BU's [95 %]", "p (Holm)", "p of success (McNemar)", "perturbations"),
                    tuple(rows),
                    "Median over the images that both classify rightly, failures infinite, by bootstrap over runs and"
                    " images; p of all attacks together; McNemar's is that of the run where it is largest.",
                )
            )
    return tables


def _bound_tables(setting: Setting, runs: AttackRuns) -> list[Table]:
    from td_compiler.benchmarks.attacks.attacks import ATTACKS

    gradient = {attack: networks for attack, networks in runs.items() if ATTACKS[attack].kind == "gradient"}
    if not gradient:
        return []
    labels = _networks(gradient)
    rows = []
    for attack, networks in gradient.items():
        for name, bound in _BOUNDS.items():
            accuracy = partial(AttackRun.accuracy_within, bound=bound)
            rows.append((attack, name, *(_over_runs(networks.get(label, ()), accuracy) for label in labels)))
    return [
        Table(
            f"Accuracy (%) under attacks by gradient: {setting.title}",
            ("attack", "largest change of a value", *labels),
            tuple(rows),
            "Values run from 0 to 1.",
        )
    ]


def _top_down(runs: AttackRuns) -> list[str]:
    """The networks whose scales were perturbed."""
    return [label for label in _networks(runs) if any(_scales(runs, label))]


def _scales(runs: AttackRuns, label: str) -> list[str]:
    """The choices of scales of one network."""
    return list(next(networks[label] for networks in runs.values() if label in networks)[0].scales)


def _vulnerability_tables(setting: Setting, runs: AttackRuns) -> list[Table]:
    return [_vulnerability_table(setting, _of_network(runs, label), label) for label in _top_down(runs)]


def _of_network(runs: AttackRuns, label: str) -> AttackRuns:
    return {attack: {label: networks[label]} for attack, networks in runs.items() if label in networks}


def _vulnerability_table(setting: Setting, runs: AttackRuns, label: str) -> Table:
    scales = _scales(runs, label)
    rows = []
    for attack, networks in runs.items():
        each = networks[label]
        clean = _over_runs(each, lambda run: float(run.right.mean()))
        rows.append((attack, clean, *(_over_runs(each, partial(_accuracy_with, name)) for name in scales)))
    return Table(
        f"Input vulnerability: {label}, {setting.title}",
        ("attack", "none", *scales),
        tuple(rows),
        "Test accuracy (%) when only the inputs at these scales are perturbed, the others clean. An attack that failed"
        " leaves the image clean.",
    )


def _accuracy_with(scales: str, run: AttackRun) -> float:
    return run.scales[scales] / run.images


def _curve_figure(setting: Setting, runs: AttackRuns) -> Figure:
    return Figure(
        f"Loss of accuracy against L2 distance: {setting.title}",
        f"robustness-curves-{setting.stem}",
        partial(draw_curves, runs),
        "Points of all test images lost to perturbations of at most that size, mean over runs. Lower is more robust"
        " (paper, figure 6).",
    )


def _vulnerability_figures(setting: Setting, runs: AttackRuns) -> list[Figure]:
    return [
        Figure(
            f"Input vulnerability: {label}, {setting.title}",
            f"robustness-vulnerability-{setting.stem}-{label.replace(', ', '-')}",
            partial(draw_vulnerability, _of_network(runs, label), label),
            "Test accuracy (%) when only the inputs at these scales are perturbed (paper, figures 5 and 12).",
        )
        for label in _top_down(runs)
    ]


def corruption_error(errors: Sequence[float], reference: Sequence[float]) -> float | None:
    """CE of Hendrycks and Dietterich (2019): a network's errors at all severities over a reference network's.

    None where the reference makes no error.
    """
    return sum(errors) / sum(reference) if sum(reference) else None


def _corruption_table(setting: Setting) -> Table:
    names = list(setting.results[0].figures["errors"])
    references = {id(arm): setting.arm("BU", beside=arm) for arm in setting.arms if arm.label != "BU"}
    others = [arm for arm in setting.arms if references.get(id(arm))]
    clean = [mean_and_deviation(arm.values("clean"), 1, 100) for arm in setting.arms]
    columns = [_beside(setting, arm, references[id(arm)], names) for arm in others]
    rows: list[tuple[Cell, ...]] = [("none", *clean, *(None for _ in others for _ in range(3)))]
    for name in [*names, "mean"]:
        over = names if name == "mean" else [name]
        shown = [mean_and_deviation(arm.values(partial(_error, names=over)), 1, 100) for arm in setting.arms]
        rows.append((name, *shown, *(cell for column in columns for cell in column[name])))
    labels = [f"{setting.name(arm)}: error (%)" for arm in setting.arms]
    more = [f"{setting.name(arm)}: {what}" for arm in others for what in ("CE (%)", "- BU [95 %]", "p (Holm)")]
    return Table(
        f"Corruptions: {setting.title}",
        ("corruption", *labels, *more),
        tuple(rows),
        "Mean error over five severities. CE: the errors relative to those of BU; their mean is the mCE of Hendrycks"
        " and Dietterich (2019), without frost. Below 100 is more robust than BU. Differences in points, of at least"
        f" {FEWEST_RUNS} runs, by bootstrap over runs and images. {setting.recipe}",
    )


def _beside(
    setting: Setting, arm: Arm, reference: Arm | None, names: Sequence[str]
) -> dict[str, tuple[Cell, Cell, Cell]]:
    """For every corruption and their `mean` the CE, the difference to BU and its p."""
    assert reference is not None
    ours, theirs = arm.values("errors"), reference.values("errors")
    relative = {name: corruption_error(_severities(ours, name), _severities(theirs, name)) for name in names}
    differences = corrupted(setting, arm)
    found: dict[str, tuple[Cell, Cell, Cell]] = {}
    for name in names:
        difference = differences.get(name)
        text, p = (difference[0].text(digits=1), difference[1]) if difference else (None, None)
        found[name] = (_percent([relative[name]]), text, p)
    return {**found, "mean": (_percent(list(relative.values())), None, None)}


def _error(figures: Mapping[str, Any], names: Sequence[str]) -> float:
    """A run's mean error over severities and some corruptions."""
    return mean(mean(figures["errors"][name]) for name in names)


def _severities(runs: Sequence[Mapping[str, Sequence[float]]], name: str) -> list[float]:
    """The errors under a corruption at each severity, mean over runs."""
    return [mean(each) for each in zip(*(run[name] for run in runs), strict=True)]


def _percent(values: Sequence[float | None]) -> Cell:
    """The mean of the values that there are."""
    known = [value for value in values if value is not None]
    return f"{100 * mean(known):.1f}" if known else None


def _corruption_figure(setting: Setting) -> Figure:
    return Figure(
        f"Error against severity of corruption: {setting.title}",
        f"robustness-corruptions-{setting.stem}",
        partial(draw_corruptions, setting),
        "Mean over the corruptions of each kind, and over runs; severity 0 is the clean image.",
    )
