"""What the robustness experiment shows: success of attacks, input vulnerability, errors under corruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from benchmarks.experiments.robustness.curves import draw_corruptions, draw_curves, draw_vulnerability
from benchmarks.experiments.robustness.groups import (
    AttackRun,
    AttackRuns,
    CorruptionRuns,
    Setting,
    attack_runs,
    corruption_runs,
)
from benchmarks.lab.journal import Result
from benchmarks.show.tables import Cell, Figure, Section, Table, mean_and_deviation

__all__ = ["corruption_error", "section"]

# Bounds under which accuracy is commonly reported: CIFAR-10's, and two of MNIST's.
_BOUNDS = {"8/255": 8 / 255, "0.1": 0.1, "0.3": 0.3}


def section(results: Sequence[Result]) -> Section:
    """Tables and figures, one of each kind for every data set, source network and size."""
    attacks, corruptions = attack_runs(results), corruption_runs(results)
    tables, figures = [], []
    for setting, runs in attacks.items():
        tables += [_success_table(setting, runs), *_bound_tables(setting, runs), *_vulnerability_tables(setting, runs)]
        figures += [_curve_figure(setting, runs), *_vulnerability_figures(setting, runs)]
    for setting, networks in corruptions.items():
        tables.append(_corruption_table(setting, networks))
        figures.append(_corruption_figure(setting, networks))
    return Section(
        title="Robustness",
        intro="The smallest perturbations that make a network misclassify an image that it classifies rightly without"
        " (paper, Exp. 2), and its errors on images under common corruptions.",
        tables=tables,
        figures=figures,
        commands=list(dict.fromkeys(result.command for result in results)),
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
    from benchmarks.attacks.attacks import ATTACKS

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
        " distance half of them are fooled; larger is more robust.",
    )


def _bound_tables(setting: Setting, runs: AttackRuns) -> list[Table]:
    from benchmarks.attacks.attacks import ATTACKS

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
        clean = _over_runs(each, lambda run: run.right / run.images)
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
        "Of the images that are classified rightly, those fooled by a perturbation of at most that size, mean over"
        " runs. Lower is more robust (paper, figure 6).",
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


def _corruption_table(setting: Setting, networks: CorruptionRuns) -> Table:
    errors = {label: _mean_errors(runs) for label, runs in networks.items()}
    others = [label for label in networks if label != "BU" and "BU" in networks]
    relative = {
        label: {name: corruption_error(each, errors["BU"][name]) for name, each in errors[label].items()}
        for label in others
    }
    clean = [mean_and_deviation([run["clean"] for run in runs], 1, 100) for runs in networks.values()]
    rows: list[tuple[Cell, ...]] = [("none", *clean, *(None for _ in others))]
    for name in next(iter(errors.values())):
        shown = [mean_and_deviation([mean(run["errors"][name]) for run in runs], 1, 100) for runs in networks.values()]
        rows.append((name, *shown, *(_percent([relative[label][name]]) for label in others)))
    means = [_percent([mean(each) for each in errors[label].values()]) for label in networks]
    rows.append(("mean", *means, *(_percent(list(relative[label].values())) for label in others)))
    return Table(
        f"Corruptions: {setting.title}",
        ("corruption", *(f"{label}: error (%)" for label in networks), *(f"{label}: CE (%)" for label in others)),
        tuple(rows),
        "Mean error over five severities. CE: the errors relative to those of BU; their mean is the mCE of Hendrycks"
        " and Dietterich (2019), without frost. Below 100 is more robust than BU.",
    )


def _mean_errors(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """A network's error under each corruption at each severity, mean over runs."""
    return {
        name: [mean(severity) for severity in zip(*(run["errors"][name] for run in runs), strict=True)]
        for name in runs[0]["errors"]
    }


def _percent(values: Sequence[float | None]) -> Cell:
    """The mean of the values that there are."""
    known = [value for value in values if value is not None]
    return f"{100 * mean(known):.1f}" if known else None


def _corruption_figure(setting: Setting, networks: CorruptionRuns) -> Figure:
    return Figure(
        f"Error against severity of corruption: {setting.title}",
        f"robustness-corruptions-{setting.stem}",
        partial(draw_corruptions, networks),
        "Mean over the corruptions of each kind, and over runs; severity 0 is the clean image.",
    )
