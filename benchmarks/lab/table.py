"""Results as one table: a row a job, a typed column for everything that its figures depend on.

Runs that differ in nothing but the seed are an arm; arms that differ in nothing but what an experiment compares (the
filter arrangement, its options, the recipe that goes with it, ...) are a setting. Nothing else is averaged or compared.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from td_compiler.benchmarks.data.datasets import title
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.training.networks import ARRANGEMENTS, NetworkSpec, helped
from td_compiler.benchmarks.training.recipes import FAST, RECIPES, Recipe, epochs_in_words, recipe_for

__all__ = ["COMPARED", "Arm", "Setting", "Value", "as_csv", "columns", "settings", "slug"]

Value = str | int | float | bool | tuple[Any, ...] | None
Columns = Mapping[str, Value]

_RECIPE = [field.name for field in fields(Recipe)]
# What is done to images makes another task: networks are compared on the same ones.
COMPARED = frozenset({"arrangement", "options", "variant", "teacher", "start", "helper", *_RECIPE}) - {
    "augment",
    "normalise",
}


def columns(result: Result) -> dict[str, Value]:
    """A result's row: all fields of its job, and its conditions.

    Fields of a training and of its recipe and network have their own names (`epochs`, `arrangement`), a network's name
    is `network`; other nested fields have dotted names.

    Raises:
        KeyError: if two fields would have the same name.
    """
    found: dict[str, Value] = {}
    for name, value in _flat((), {**result.job, **result.conditions}):
        if name in found:
            raise KeyError(f"{result.experiment}: two columns {name!r}")
        found[name] = value
    return found


def as_csv(results: Sequence[Result]) -> str:
    """One line for each result: its experiment, its row, every figure that is one number, and the command."""
    rows: list[dict[str, Value]] = []
    for result in results:
        row = {"experiment": result.experiment, **columns(result)}
        numbers = {name: each for name, each in result.figures.items() if isinstance(each, int | float)}
        row |= {f"{name}, counted" if name in row else name: each for name, each in numbers.items()}
        row |= {"seconds": result.seconds, "finished": result.finished, "command": result.command}
        rows.append({name: _words(each) if isinstance(each, tuple) else each for name, each in row.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(path: tuple[str, ...], value: Any) -> Iterator[tuple[str, Value]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _flat((*path, name), each)
        return
    words = [word for word in path if word not in {"training", "given", "recipe"}]
    if words[-2:] == ["network", "name"]:
        words.pop()
    elif len(words) > 1 and words[-2] == "network":
        del words[-2]
    if words:
        yield ".".join(words), _frozen(value)


def _frozen(value: Any) -> Value:
    frozen: Value = tuple(map(_frozen, value)) if isinstance(value, list) else value
    return frozen


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but the seed.

    Attributes:
        columns: what they share.
        runs: their results, by seed.
    """

    columns: Columns
    runs: Mapping[int, Result]

    @property
    def label(self) -> str:
        """`BU`, `mirror`, `mirror, head_width=32`."""
        options: Any = self.columns.get("options", ())
        network = NetworkSpec("zoo:any", str(self.columns.get("arrangement", "bu")), options).label
        return ", ".join([network, *self.help])

    @property
    def help(self) -> list[str]:
        """What helped in its training: `teacher=bu`, `weights=bu`; mostly nothing."""
        return helped(*(str(self.columns.get(name, "")) for name in ("teacher", "start")))

    @property
    def recipe(self) -> str:
        """In words: `the paper's recipe`, `the paper's recipe with epochs=2, batch_size=32`."""
        if "epochs" not in self.columns:
            return ""
        data, network = str(self.columns.get("base", self.columns["data"])), str(self.columns["network"])
        arrangement, augment = str(self.columns["arrangement"]), str(self.columns["augment"])
        fast = self.columns["label"] == FAST
        plain = recipe_for(data, network, arrangement, augment=augment, fast=fast)
        changed = [f"{n}={_words(self.columns[n])}" for n in _RECIPE if self.columns[n] != getattr(plain, n)]
        name = "the default recipe" if plain == RECIPES[-1].recipe else "the paper's recipe"
        name = "the fast recipe" if fast else name
        return name + (f" with {', '.join(changed)}" if changed else "")

    def values(self, figure: str | Callable[[Mapping[str, Any]], Any]) -> list[Any]:
        """A figure of each run, by name or as a function of the run's figures."""
        of = figure if callable(figure) else lambda figures: figures[figure]
        return [of(run.figures) for run in self.runs.values()]

    def same_recipe(self, other: Arm) -> bool:
        """Whether both were trained alike: each by its own recipe of the paper, changed alike, or by the same one."""
        return self.recipe == other.recipe or all(self.columns.get(n) == other.columns.get(n) for n in _RECIPE)


@dataclass(frozen=True)
class Setting:
    """Arms that are compared.

    Attributes:
        columns: what they share.
        arms: in the order of the papers' tables.
        title: what tells the setting from the others of its experiment.
    """

    columns: Columns
    arms: Sequence[Arm]
    title: str = ""

    @property
    def results(self) -> list[Result]:
        """All runs of all arms."""
        return [run for arm in self.arms for run in arm.runs.values()]

    def name(self, arm: Arm) -> str:
        """An arm's label, with its recipe where that alone tells it from another."""
        twins = [other for other in self.arms if other.label == arm.label and other.recipe != arm.recipe]
        return f"{arm.label}, {arm.recipe}" if twins else arm.label

    def arm(self, label: str, beside: Arm | None = None) -> Arm | None:
        """The arm of a label, of several the one that was trained as `beside` was; None where there is none."""
        found = [arm for arm in self.arms if arm.label == label]
        if beside is not None:
            found = [arm for arm in found if arm.same_recipe(beside)]
        return found[0] if found else None

    def by(self, column: str) -> dict[Any, Setting]:
        """The arms of each value of a column."""
        found: dict[Any, list[Arm]] = {}
        for arm in self.arms:
            found.setdefault(arm.columns.get(column), []).append(arm)
        return {value: Setting(self.columns, arms, self.title) for value, arms in found.items()}

    @property
    def stem(self) -> str:
        """The title for names of files."""
        return slug(self.title)

    @property
    def recipe(self) -> str:
        """How its arms were trained: a sentence."""
        by_recipe: dict[str, list[str]] = {}
        for arm in self.arms:
            by_recipe.setdefault(arm.recipe, []).append(arm.label)
        if len(by_recipe) == 1:
            return f"Trained by {next(iter(by_recipe))}."
        return "Trained by " + "; ".join(f"{recipe} ({', '.join(who)})" for recipe, who in by_recipe.items()) + "."


def settings(results: Iterable[Result], compared: Collection[str] = COMPARED) -> list[Setting]:
    """What can be compared, in the order of data sets and networks.

    Args:
        results: of one experiment.
        compared: the columns in which arms of a setting may differ.
    """
    arms: dict[tuple[Any, ...], dict[int, Result]] = {}
    for result in results:
        row = columns(result)
        seed: Any = row.get("run", 0)
        key = tuple(sorted((name, value) for name, value in row.items() if name.rpartition(".")[2] != "run"))
        arms.setdefault(key, {})[seed] = result
    groups: dict[tuple[Any, ...], list[Arm]] = {}
    for key, runs in arms.items():
        shared = tuple((name, value) for name, value in key if name not in compared and not name.startswith("helper."))
        groups.setdefault(shared, []).append(Arm(dict(key), dict(sorted(runs.items()))))
    found = [Setting(dict(shared), sorted(each, key=_place)) for shared, each in groups.items()]
    found.sort(key=lambda setting: (str(setting.columns.get("data")), str(setting.columns.get("network"))))
    return _with_titles(found)


def _place(arm: Arm) -> tuple[int, int, str, str]:
    options: Any = arm.columns.get("options", ())
    place = ARRANGEMENTS.index(str(arm.columns.get("arrangement", "bu")))
    return place, len(options) + len(arm.help), str((options, arm.help)), arm.recipe


def _with_titles(found: Sequence[Setting]) -> list[Setting]:
    bases = [_base_title(setting) for setting in found]
    titled = []
    for setting, base in zip(found, bases, strict=True):
        twins = [other for other, its in zip(found, bases, strict=True) if its == base and other is not setting]
        names = [name for name in setting.columns if any(_differ(name, setting, other) for other in twins)]
        more = [f"{name.replace('_', ' ')} {_words(setting.columns[name])}" for name in names]
        titled.append(Setting(setting.columns, setting.arms, ", ".join([base, *more])))
    return titled


def _differ(name: str, one: Setting, other: Setting) -> bool:
    return one.columns.get(name) != other.columns.get(name)


def _base_title(setting: Setting) -> str:
    """`lenet_fc on MNIST, 2 epochs of 4,000 training images, 2,000 test images`, counted, not asked for."""
    network = str(setting.columns.get("network", "")).removeprefix("zoo:")
    base = setting.columns.get("base") or setting.columns.get("data")
    place = ([network] if network else []) + ([title(str(base))] if base else [])
    counts = {name: setting.results[0].figures.get(name) for name in ("train_images", "test_images")}
    epochs = {arm.columns["epochs"] for arm in setting.arms if "epochs" in arm.columns}
    augment = str(setting.columns.get("augment", "none"))
    length = f"{epochs_in_words(*epochs)} of " if len(epochs) == 1 else ""  # type: ignore[arg-type]
    kinds = {"train_images": (length, "training"), "test_images": ("", "test")}
    said = [f"{kinds[name][0]}{_counted(count, kinds[name][1])}" for name, count in counts.items() if count]
    labels = {arm.columns.get("label") == FAST for arm in setting.arms}
    fast = [f"{FAST} recipe" if labels == {True} else f"{FAST} and other recipes"] if True in labels else []
    return ", ".join([" on ".join(place), *said, *([augment] if augment != "none" else []), *fast])


def slug(text: str) -> str:
    """Text as part of a file's name, in letters, digits and hyphens; a hash in place of what is long."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain if len(plain) <= 80 else f"{plain[:70]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _counted(count: int, kind: str) -> str:
    return f"{count:,} {kind} image{'s' * (count != 1)}"


def _words(value: Value) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_words, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
