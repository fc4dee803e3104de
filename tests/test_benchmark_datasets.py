"""The benchmarks' data sets: reading, subsets, batches, and what is said of those that are missing or damaged."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from td_compiler.benchmarks.data import images as images_module
from td_compiler.benchmarks.data.datasets import (
    DATASETS,
    DataError,
    Derived,
    Images,
    Stream,
    fingerprint,
    load,
    opened,
    title,
)
from td_compiler.benchmarks.training.batches import augmented, batches, shuffled, split
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.recipes import PROFILES, changed, recipe_for
from td_compiler.benchmarks.training.training import planned
from tests.support.benchmark_data import bars, machine, write_folder, write_mnist


def test_mnist_files_are_read_as_they_are(tmp_path: Path) -> None:
    here = machine(tmp_path, write_mnist(tmp_path))
    data = load("mnist", here, train=False)
    expected, labels = bars(100)
    assert torch.equal(data.images, expected[:, None]) and torch.equal(data.labels, labels)
    assert (data.input_size, len(data.classes), data.images.dtype) == ((1, 28, 28), 10, torch.uint8)


def test_a_limit_takes_always_the_same_images_of_all_classes(tmp_path: Path) -> None:
    here = machine(tmp_path, write_mnist(tmp_path))
    some = load("mnist", here, train=True, limit=100)
    opened.cache_clear()
    assert torch.equal(some.images, load("mnist", here, train=True, limit=100).images)
    assert len(some) == 100 and len(some.labels.unique()) == 10


def test_a_folder_and_its_archive_hold_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one" / "cifar10-jpeg")
    (tmp_path / "two").mkdir()
    with tarfile.open(tmp_path / "two" / "cifar10-jpeg.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar10-jpeg")
    unpacked, packed = (load("cifar10-jpeg", machine(tmp_path, tmp_path / n), train=True) for n in ("one", "two"))
    assert unpacked.classes == packed.classes == ("a", "b", "c")
    assert torch.equal(unpacked.images, packed.images) and torch.equal(unpacked.labels, packed.labels)
    assert [int(image[label, 5, 5]) for image, label in zip(packed.images, packed.labels, strict=True)] == [200] * 18


@pytest.mark.parametrize("packed", [False, True])
def test_test_images_are_numbered_as_the_training_images_are(tmp_path: Path, packed: bool) -> None:
    folder = write_folder(tmp_path / "set" / "cifar10-jpeg")
    shutil.rmtree(folder / "test" / "a")
    here, name = machine(tmp_path, tmp_path / "set"), "cifar10-jpeg"

    def load_test() -> Images:
        opened.cache_clear()
        if packed:
            with tarfile.open(folder.with_name("cifar10-jpeg.tar.gz"), "w:gz") as archive:
                archive.add(folder, "cifar10-jpeg")
            folder.rename(tmp_path / "away")
        try:
            return load(name, here, train=False)
        finally:
            if packed:
                (tmp_path / "away").rename(folder)

    test = load_test()
    assert test.classes == ("a", "b", "c") and test.labels.tolist() == [1] * 6 + [2] * 6
    assert [int(image[label, 5, 5]) for image, label in zip(test.images, test.labels, strict=True)] == [200] * 12
    (folder / "test" / "b").rename(folder / "test" / "d")
    with pytest.raises(DataError, match=r"test has a class 'd' that train has not \(a, b, c\)"):
        load_test()


def test_images_resized_for_cropping_are_seen_in_the_middle_by_tests(tmp_path: Path) -> None:
    here, name = machine(tmp_path, tmp_path), f"folder:{write_folder(tmp_path / 'set', side=80)}@64"
    train, test = load(name, here, train=True), load(name, here, train=False)
    assert (train.images.shape[-1], train.input_size) == (78, (3, 64, 64)), "156/128 of the crop, as for Imagenette"
    assert test.images.shape[1:] == test.input_size == (3, 64, 64)


def test_data_too_large_for_memory_gives_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, name = machine(tmp_path, tmp_path), f"folder:{write_folder(tmp_path / 'set')}"
    in_memory = opened(name, here, train=True)
    opened.cache_clear()
    monkeypatch.setattr(images_module, "_MEMORY_LIMIT", 0)
    streamed = opened(name, here, train=True)
    assert isinstance(in_memory, Images) and isinstance(streamed, Stream)
    order = shuffled(torch.arange(18), 4, run=0, epoch=1)
    for (these, labels), (those, same) in zip(batches(in_memory, order), batches(streamed, order), strict=True):
        assert torch.equal(these, those) and torch.equal(labels, same)
    with pytest.raises(DataError, match="18 images, too many for memory"):
        load(name, here, train=True)


def test_a_data_set_can_be_made_from_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inverted = Derived(
        lambda by, base: f"{base} minus {by}",
        lambda data, by, train: Images(int(by) - data.images, data.labels, data.classes),
    )
    monkeypatch.setitem(DATASETS, "minus", inverted)
    here = machine(tmp_path, write_mnist(tmp_path))
    assert torch.equal(load("minus:255:mnist", here, train=False).images, 255 - load("mnist", here, train=False).images)
    assert title("minus:255:mnist") == "MNIST minus 255"
    assert len({fingerprint(name, here) for name in ("mnist", "minus:255:mnist", "minus:254:mnist")}) == 3


def test_the_fingerprint_changes_with_the_content(tmp_path: Path) -> None:
    here = machine(tmp_path, write_mnist(tmp_path))
    before = fingerprint("mnist", here)
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x03")
    fingerprint.cache_clear()
    assert fingerprint("mnist", here) != before
    name = f"folder:{write_folder(tmp_path / 'set', each=20)}"
    before = fingerprint(name, here)
    pixels = tmp_path / "set" / "train" / "a" / "3.png"
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"\x00")  # of the same size, one of 120
    fingerprint.cache_clear()
    assert fingerprint(name, here) != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnst", "no data set 'mnst', only .*Did you mean mnist"),
        ("mnist", r"no mnist in .*MNIST/raw: give its folder with --data-root, or add --download"),
        ("imagenette", r"no imagenette in .*imagenette2-160: .*--data-root, or add --download"),
        ("imagenet", r"no imagenet in .*train/CLASS/"),
        ("folder:/nowhere", "no folder in /nowhere: give a folder with train/CLASS/"),
        ("mnist:3", "mnist takes no argument"),
        ("folder:/nowhere@big", "after @ comes the side"),
    ],
)
def test_a_missing_data_set_is_told_with_the_way_to_get_it(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(name, machine(tmp_path, tmp_path), train=True)


def test_damaged_data_are_named_and_never_used(tmp_path: Path) -> None:
    here, folder = machine(tmp_path, write_mnist(tmp_path)), write_folder(tmp_path / "set")
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:100])
    with pytest.raises(DataError, match=r"mnist in .*MNIST/raw cannot be read"):
        load("mnist", here, train=True)
    broken = folder / "train" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"b/3.png is not an image that can be read .*replace or remove it"):
        load(f"folder:{folder}", here, train=True)
    write_folder(tmp_path / "mixed")
    write_folder(tmp_path / "larger", side=40)
    (tmp_path / "larger" / "train" / "a" / "0.png").replace(tmp_path / "mixed" / "train" / "b" / "1.png")
    with pytest.raises(DataError, match=r"b/1.png is \(3, 40, 40\), not \(3, 32, 32\) .*PATH@SIZE"):
        load(f"folder:{tmp_path / 'mixed'}", here, train=True)
    (tmp_path / "cifar10-jpeg.tar.gz").write_bytes(gzip.compress(b"no archive"))
    with pytest.raises(DataError, match=r"cifar10-jpeg.tar.gz cannot be read .*get it anew"):
        load("cifar10-jpeg", here, train=True)


def test_held_out_images_differ_from_run_to_run_and_are_a_tenth() -> None:
    kept, held_out = split(1000, 0.1, run=0)
    assert len(held_out) == 100 and sorted([*kept.tolist(), *held_out.tolist()]) == list(range(1000))
    assert set(split(1000, 0.1, run=1)[1].tolist()) != set(held_out.tolist())


def test_processes_share_the_batches_of_one() -> None:
    indices = torch.arange(100, 200)
    alone = shuffled(indices, 8, run=3, epoch=2)
    shares = [shuffled(indices, 8, 3, 2, rank, world_size=2) for rank in (0, 1)]
    assert len(alone) == 12 and all(len(batch) == 8 for batch in alone), "the incomplete last batch is left out"
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist()) and len(parts[0]) == len(parts[1])
    assert not torch.equal(torch.cat(alone), torch.cat(shuffled(indices, 8, 3, epoch=3)))


def test_shifts_repeat_the_border_and_stay_within_a_tenth() -> None:
    ramp = torch.arange(20.0).expand(1, 20, 20).repeat(400, 1, 1)[:, None] / 20
    torch.manual_seed(0)
    changed = augmented(ramp, "shift-flip", None)
    flipped = changed[:, 0, 0, 0] > changed[:, 0, 0, -1]
    assert 150 < int(flipped.sum()) < 250
    upright = torch.where(flipped[:, None, None, None], changed.flip(-1), changed)
    shifts = (20 * upright[:, 0, 10, 10]).round().long() - 10
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}, "10 % of 20 pixels, to either side"
    for image, shift in zip(upright[:40, 0], shifts.tolist(), strict=False):
        assert torch.equal(image[0], (torch.arange(20) + shift).clamp(0, 19) / 20)


def test_crops_are_parts_of_the_image_and_colours_move_together() -> None:
    images = torch.linspace(0.2, 0.7, 3 * 12 * 12).view(1, 3, 12, 12).repeat(50, 1, 1, 1)
    torch.manual_seed(0)
    changed = augmented(images, "crop-flip-colour", 8)
    assert changed.shape == (50, 3, 8, 8)
    means = changed.mean((2, 3))
    assert means.std(0).min() > 0.005, "places and colours differ"
    assert torch.equal(augmented(images, "none", 8), images[:, :, 2:10, 2:10])


def test_the_papers_recipes() -> None:
    """SPEC 5, row by row: epochs, weight decay (twice the authors' w), batch, rate, augmentation."""
    rows = {
        ("mnist", "zoo:lenet_fc", "bu"): (50, 0, 128, 0.1, "none"),
        ("mnist", "zoo:lenet_fc", "mirror"): (30, 0, 128, 0.1, "none"),
        ("mnist", "zoo:nin_light", "mirror"): (50, 0, 128, 0.1, "none"),
        ("fashion-mnist", "zoo:lenet_fc", "uniform"): (40, 0, 128, 0.1, "none"),
        ("fashion-mnist", "zoo:nin_light", "bu"): (50, 0, 128, 0.1, "none"),
        ("cifar10-jpeg", "zoo:resnet32", "reversed"): (100, 1e-3, 128, 0.1, "none"),
        ("imagenette", "zoo:resnet18_light", "bu"): (50, 2e-3, 128, 0.1, "crop-flip-colour"),
        ("imagenette", "zoo:resnet18_light", "mirror"): (80, 2e-3, 64, 0.05, "crop-flip-colour"),
        ("imagenette", "timm:resnet18", "mirror"): (80, 2e-3, 64, 0.05, "crop-flip-colour"),
    }
    for names, expected in rows.items():
        recipe = recipe_for(*names)
        found = (recipe.epochs, recipe.weight_decay, recipe.batch_size, recipe.learning_rate, recipe.augment)
        assert found == expected, names
        assert (recipe.momentum, recipe.milestones, recipe.held_out) == (0.9, (0.5, 0.8), 0.1)
    augmented_recipe = recipe_for("cifar10", "zoo:nin", "bu", augment="shift-flip")
    assert (augmented_recipe.epochs, augmented_recipe.weight_decay, augmented_recipe.normalise) == (
        200,
        2e-4,
        "pixel-mean",
    )


def test_imagenette_is_trained_as_in_the_supplement() -> None:
    """Per-pixel mean subtracted; the authors' top-down network undoes the stem first, and has SPEC 4's parameters."""
    plans = [
        planned(PROFILES["paper"], NetworkSpec("resnet18_light", way), "imagenette", 0) for way in ("bu", "mirror")
    ]
    assert [plan.recipe.normalise for plan in plans] == ["pixel-mean"] * 2
    assert [plan.network.options for plan in plans] == [(), (("stem", "leading"),)]
    assert plans[1].network.costs((3, 128, 128), 10).parameters == 4_966_538
    other = NetworkSpec("resnet18_light", "mirror", (("stem", "trailing"),))
    assert planned(PROFILES["paper"], other, "imagenette", 0).network == other


def test_fast_recipes_are_the_papers_in_one_cycle() -> None:
    for data, epochs in {"mnist": 5, "fashion-mnist": 10, "cifar10-jpeg": 30, "folder:x": 20}.items():
        paper, fast = (recipe_for(data, "zoo:nin_light", "mirror", fast=each) for each in (False, True))
        cycle = replace(paper, schedule="one-cycle", learning_rate=0.2, norm_momentum=0.1)
        assert fast == replace(cycle, label="fast", epochs=epochs)
    assert changed(fast, ["learning_rate=0.3", "batch_size=64"]).learning_rate == 0.3
    assert changed(fast, ["batch_size=64"]).learning_rate == pytest.approx(0.1)
    quick = PROFILES["quick"].fit(fast)
    assert (quick.batch_size, quick.learning_rate, quick.label) == (32, pytest.approx(0.05), "fast")


def test_recipes_can_be_changed_setting_by_setting() -> None:
    recipe = recipe_for("mnist", "zoo:lenet_fc", "bu")
    new = changed(recipe, ["batch_size=64", "learning_rate=1", "milestones=[0.3]", "augment=shift-flip"])
    assert (new.batch_size, new.learning_rate, new.milestones, new.augment) == (64, 1.0, (0.3,), "shift-flip")
    for wrong in ("batchsize=64", "batch_size", "batch_size=many", "batch_size=1.5", "milestones=0.5"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            changed(recipe, [wrong])
    assert PROFILES["paper"].fit(recipe) == recipe
    quick = PROFILES["quick"].fit(recipe)
    assert (quick.batch_size, quick.learning_rate, quick.fresh_statistics) == (32, 0.1, True)
