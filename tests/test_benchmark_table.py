"""The table of results: what is averaged, what is compared, what titles say."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from td_compiler.benchmarks.experiments.accuracy import EXPERIMENT
from td_compiler.benchmarks.lab.files import said
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.lab.table import columns, settings
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.recipes import PROFILES
from td_compiler.benchmarks.training.training import Training, planned

CONDITIONS = {"revision": 2, "compiler": "1", "sources": "", "content": "0", "processor": "CPU", "precision": "32-true"}


def result(training: Training, accuracy: float, images: int = 60_000, **conditions: Any) -> Result:
    figures: dict[str, Any] = {
        "accuracy": accuracy,
        "train_images": images,
        "test_images": 10_000,
        "right": packed([1] * 9 + [0]),
    }
    figures |= {"parameters": 1, "macs": 1, "seconds_per_epoch": 1.0, "peak_memory": 1, "history": []}
    job, key = {"training": asdict(training)}, f"{training.name} {accuracy} {conditions}"
    versions = {"device": "CPU"}
    return Result(key, "accuracy", "a", job, {**CONDITIONS, **conditions}, figures, "c", versions, 1, "2026")


def plan(way: str = "bu", run: int = 0, settings: tuple[str, ...] = (), data: str = "mnist", **more: Any) -> Training:
    made = planned(PROFILES["paper"], NetworkSpec("lenet_fc", way), data, run, settings=settings)
    return replace(made, **more)


def test_unlike_trainings_are_no_runs_of_each_other() -> None:
    """Of the issue: 99 % after 50 epochs and 50 % after one were 74.50 ± 34.65 of two runs."""
    short = ("epochs=1",)
    results = [
        *(result(plan(run=run), 0.99) for run in (0, 1)),
        result(plan(settings=short), 0.50),
        *(result(plan("mirror", run=run), 0.98) for run in (0, 1)),
        result(plan("mirror", settings=short), 0.60),
    ]
    (table,) = EXPERIMENT.section(results).tables
    assert [(row[0], row[1], row[3], row[4], row[5]) for row in table.rows] == [
        ("BU, the paper's recipe", "99.00 ± 0.00", None, 2, "50"),
        ("BU, the paper's recipe with epochs=1", "50.00", None, 1, "1"),
        ("mirror, the paper's recipe", "98.00 ± 0.00", "-1.00", 2, "30"),
        ("mirror, the paper's recipe with epochs=1", "60.00", "+10.00", 1, "1"),
    ]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (result(plan(), 0.5, precision="bf16-mixed"), "precision bf16-mixed"),
        (result(plan(), 0.5, processor="H100"), "processor H100"),
        (result(plan(), 0.5, sources="net.py 12ab"), "sources net.py 12ab"),
        (result(plan(), 0.5, content="1"), "content 1"),
        (result(plan(), 0.5, compiler="2"), "compiler 2"),
        (result(replace(plan(), train_images=60_000), 0.5), "train images 60000"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_titles_say_what_differs(other: Result, words: str) -> None:
    found = settings([result(plan(), 0.9), result(plan(run=1), 0.92), other])
    assert len(found) == 2 and len({setting.title for setting in found}) == 2
    (title,) = (setting.title for setting in found if other in setting.results)
    assert title == f"lenet_fc on MNIST, 50 epochs of 60,000 training images, 10,000 test images, {words}"


@pytest.mark.parametrize("setting", ["learning_rate=0.01", "batch_size=64", "schedule=plateau", "weight_decay=0.1"])
def test_recipes_are_never_mixed(setting: str) -> None:
    (found,) = settings([result(plan(), 0.9), result(plan(settings=(setting,)), 0.5)])
    assert [len(arm.runs) for arm in found.arms] == [1, 1]
    assert any(setting in found.name(arm) for arm in found.arms)


def test_what_a_fast_recipe_gives_is_called_fast() -> None:
    fast = plan(settings=("fast",)), plan("mirror", settings=("fast",)), plan(settings=("fast", "epochs=3"))
    found = settings([result(each, 0.9) for each in fast])
    assert found[0].title == "lenet_fc on MNIST, 60,000 training images, 10,000 test images, fast recipe"
    assert [arm.recipe for arm in found[0].arms] == [
        "the fast recipe",
        "the fast recipe with epochs=3",
        "the fast recipe",
    ]
    assert "paper" not in found[0].recipe
    both = settings([result(plan(), 0.9), result(fast[0], 0.8)])
    assert both[0].title.endswith(", fast and other recipes")
    assert [both[0].name(arm) for arm in both[0].arms] == ["BU, the fast recipe", "BU, the paper's recipe"]


def test_a_field_that_says_nothing_is_in_no_key() -> None:
    """So that one that is added later, empty by default, leaves trained networks and results where they are."""
    assert said({"a": 0, "b": "", "c": {"d": None, "e": ()}, "f": False, "g": {"h": 1.0}}) == {
        "a": 0,
        "f": False,
        "g": {"h": 1.0},
    }


def test_titles_count_the_images_that_there_are() -> None:
    (found,) = settings([result(replace(plan(), train_images=1_000), 0.9, images=220)])
    assert "220 training images" in found.title and "1,000" not in found.title


def test_augmented_images_are_another_task() -> None:
    plans = [
        planned(PROFILES["paper"], NetworkSpec("nin"), "cifar10", 0, augment=each) for each in ("none", "shift-flip")
    ]
    found = settings([result(each, 0.9) for each in plans])
    assert [setting.title.rpartition(", ")[2] for setting in found] == ["10,000 test images", "shift-flip"]
    assert {setting.arms[0].recipe for setting in found} == {"the paper's recipe"}


def test_a_column_is_a_field_with_its_type() -> None:
    row = columns(result(plan("mirror"), 0.9))
    assert (row["network"], row["arrangement"], row["epochs"], row["learning_rate"]) == (
        "zoo:lenet_fc",
        "mirror",
        30,
        0.1,
    )
    assert (row["milestones"], row["precision"], row["train_images"]) == ((0.5, 0.8), "32-true", None)
    twice = result(plan(), 0.9)
    twice.job["epochs"] = 3
    with pytest.raises(KeyError, match="two columns 'epochs'"):
        columns(twice)
