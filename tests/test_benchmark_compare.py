"""`compare`: its measures against other libraries and counts by hand, its verdicts, and the command from end to end."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from td_compiler.benchmarks.attacks.worst_case import withstands
from td_compiler.benchmarks.data.datasets import DataError, load
from td_compiler.benchmarks.data.objects import known_objects, load_objects
from td_compiler.benchmarks.experiments import compare
from td_compiler.benchmarks.experiments.compare.jobs import Compare, Size
from td_compiler.benchmarks.experiments.compare.measures import (
    LEVELS,
    box_overlaps,
    calibration_gaps,
    deletion_and_insertion,
    energy_inside,
    hits,
    pixels_above,
    rank_correlation,
    shift_agreement,
)
from td_compiler.benchmarks.experiments.compare.properties import (
    Finding,
    Property,
    average_precision,
    box_accuracy,
    judged,
)
from td_compiler.benchmarks.experiments.compare.section import section, summary
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.lab.statistics import Estimate
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.training import Training
from td_compiler.cli.app import app
from tests.support.benchmark_data import NETWORKS, RECIPE, machine, write_folder, write_mnist


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_calibration_error_is_that_of_torchmetrics() -> None:
    probabilities = torch.randn(400, 5, generator=chance()).mul(2).softmax(1)
    labels = torch.randint(5, (400,), generator=chance(1))
    confidences, found = probabilities.max(1)
    ours = calibration_gaps(confidences, found == labels).sum(0).abs().sum() / 400
    theirs = multiclass_calibration_error(probabilities, labels, 5, n_bins=15, norm="l1")
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_a_certain_answer_that_is_right_has_no_gap() -> None:
    assert calibration_gaps(torch.tensor([1.0, 1.0]), torch.tensor([True, False])).sum(0).tolist()[-1] == 1.0


def test_shift_agreement_of_networks_whose_answers_are_known() -> None:
    images = torch.zeros(3, 1, 28, 28)
    images[1, 0, 13:15, :] = 1  # shifted up and down it leaves its rows, sideways it stays
    images[2] = torch.rand(1, 28, 28, generator=chance())

    def total(shown: Tensor) -> Tensor:  # the mean over an image does not tell where a bar is
        bright = shown.sum((1, 2, 3))
        return torch.stack([bright, 56 - bright], 1)

    def place(shown: Tensor) -> Tensor:
        return torch.stack([shown[:, 0, 13, 0], 0.5 + 0 * shown[:, 0, 13, 0]], 1)

    assert shift_agreement(total, images[:2], 20, chance()).tolist() == [1, 1]
    found = shift_agreement(place, images, 200, chance())
    # Of the four shifts of up to 3 pixels, -2 to 1 or -1 to 2, two show the bar in row 13: half of all pairs agree.
    assert found[0] == 1 and found[1] == pytest.approx(0.5, abs=0.12)


def test_deletion_and_insertion_by_hand() -> None:
    """A network that reads one pixel of four: gone first, or last."""
    images = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]).repeat(2, 1, 1, 1)
    heat = torch.tensor([[[[9.0, 3.0], [2.0, 1.0]]], [[[0.0, 3.0], [2.0, 1.0]]]])

    def reads(shown: Tensor) -> Tensor:
        return torch.stack([shown[:, 0, 0, 0] * 4, torch.ones(len(shown))], 1)

    def probability(value: float) -> float:
        return float(np.exp(4 * value) / (np.exp(4 * value) + np.e))

    deleted, inserted = deletion_and_insertion(reads, images, heat, torch.zeros(2, dtype=torch.long), 4, chance())
    whole, mean = probability(1.0), probability(0.25)
    assert deleted.tolist() == pytest.approx(
        [(whole / 2 + 3.5 * mean) / 4, (3.5 * whole + mean / 2) / 4]  # trapezoids of a step after the first, the last
    )
    assert inserted[0] > inserted[1]
    # The blurred pixel's value follows from the last curve: it is whole after the fourth step alone.
    blurred = (4 * float(inserted[1]) - whole / 2) / 3.5
    assert float(inserted[0]) == pytest.approx((blurred / 2 + 3.5 * whole) / 4)


def test_a_heat_map_of_one_value_goes_in_random_order() -> None:
    images, heat = torch.rand(64, 1, 8, 8, generator=chance()), torch.ones(64, 1, 8, 8)

    def left_half(shown: Tensor) -> Tensor:
        return torch.stack(
            [shown[..., :4].mean((1, 2, 3)) - shown[..., 4:].mean((1, 2, 3)), torch.zeros(len(shown))], 1
        )

    deleted, _ = deletion_and_insertion(left_half, images, heat, torch.zeros(64, dtype=torch.long), 4, chance())
    probabilities = left_half(images).softmax(1)[:, 0]
    assert float(deleted.mean()) == pytest.approx(float((probabilities.mean() + 0.5) / 2), abs=0.01)


def test_pointing_and_energy_by_hand() -> None:
    heat = torch.tensor([[[[4.0, 1.0], [-2.0, 3.0]]], [[[1.0, 1.0], [1.0, 1.0]]], [[[-1.0, -1.0], [-1.0, -1.0]]]])
    objects = torch.tensor([[[[True, False], [True, False]]]]).repeat(3, 1, 1, 1)
    assert hits(heat, objects).tolist() == [1, 0.5, 0.5]
    assert energy_inside(heat, objects).tolist() == pytest.approx([4 / 8, 0.5, 0])


def test_rank_correlation_is_that_of_scipy() -> None:
    one, other = torch.rand(2, 4, 1, 5, 6, generator=chance())
    one, other = (one * 5).round(), other + one  # ties
    expected = [stats.spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(one, other, strict=True)]
    assert rank_correlation(one, other).tolist() == pytest.approx(expected)
    assert rank_correlation(torch.ones(1, 1, 3, 3), F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1))).tolist() == [1]


def test_the_worst_attack_on_a_linear_network_is_the_best_there_is() -> None:
    """By hand: each value moves by the bound, or to the end of [0, 1], against the difference of two rows' weights."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 3)
    network = nn.Sequential(nn.Flatten(), layer).eval()
    images = torch.rand(50, 1, 4, 4)
    scores, bound = network(images).detach(), 0.1
    labels, weights = scores.argmax(1), layer.weight.detach()
    standing = torch.ones(50, dtype=torch.bool)
    for other in range(3):
        against, flat = weights[other] - weights[labels], images.flatten(1)
        step = torch.where(against > 0, (flat + bound).clamp(max=1) - flat, (flat - bound).clamp(min=0) - flat)
        margin = scores.gather(1, labels[:, None])[:, 0] - scores[:, other]
        standing &= (labels == other) | (margin > (against * step).sum(1))
    assert 0 < standing.sum() < 50
    assert torch.equal(withstands(network, images, labels, bound), standing)
    assert not withstands(network, images, (labels + 1) % 3, bound).any()  # what is wrong is not attacked


def answers(right: np.ndarray, confidence: np.ndarray | None = None) -> dict[str, Any]:
    confidence = np.full(right.shape, 0.5) if confidence is None else confidence
    return {
        **{"train_images": 10, "test_images": len(right), "right": packed(right), "commonest": 0.1},
        **{"confidence": packed(confidence), "loss": packed(-np.log(np.where(right, confidence, 1 - confidence)))},
    }


def results(*, gain: float = 0.3, runs: int = 3, images: int = 200, more: float = 0.0) -> list[Result]:
    """Of a BU network that is right on half of the images and a TD network that is on `gain` more; FGSM at distances
    whose logarithm is `more` larger."""
    chance, found = np.random.default_rng(0), []
    size = Size(images, images, 4, 0.01)
    for run in range(runs):
        luck = chance.random(images)
        for arrangement, share in (("bu", 0.5), ("mirror", 0.5 + gain)):
            training = Training(NetworkSpec("own.py", arrangement), "mnist", RECIPE, run)
            distances = np.exp(chance.normal(more * (arrangement == "mirror"), 0.1, images))
            attack = {"right": packed(np.ones(images, bool)), "l2": packed(distances), "linf": packed(distances)}
            for measure, figures in (("answers", answers(luck < share)), ("FGSM", attack)):
                job = Compare(training, measure, size)
                found.append(result(job, figures, f"{measure} {arrangement} {run}"))
    return found


def result(job: Compare, figures: dict[str, Any], key: str) -> Result:
    plain = json.loads(json.dumps(asdict(job)))
    return Result(key, "compare", job.name, plain, {}, figures, "tdc compare own.py", {}, 1.0, "2026-01-01T00:00:00")


def words(found: list[Result], floor: float | None = None) -> dict[str, str]:
    (table,) = section(found, floor).tables
    return {str(row[0]): str(row[5]) for row in table.rows}


def test_verdicts_are_those_of_the_whole_interval() -> None:
    found = words(results(gain=0.3, more=0.5))
    assert found["accuracy (%)"] == "better" and found["attack, FGSM: largest change needed"] == "better"
    found = words(results(gain=-0.3, more=-0.5))
    assert found["accuracy (%)"] == "worse" and found["attack, FGSM: largest change needed"] == "worse"
    assert found["calibration: log loss"] == "undecided"  # all confidences are 0.5
    found = words(results(gain=0.0, more=0.0))
    assert found["accuracy (%)"] == found["attack, FGSM: largest change needed"] == "undecided"


def test_nothing_is_said_of_few_runs_or_a_weak_network() -> None:
    assert set(words(results(runs=2)).values()) == {"not tested"}
    assert set(words(results(), floor=90).values()) == {"not tested"}
    (table,) = section(results(), floor=90).tables
    assert re.search(r"BU reaches 4\d\.\d %, not 90.0 %", table.note) or "BU reaches 5" in table.note
    assert "Nothing here says" in section(results()).tables[0].note


def test_of_a_network_that_has_learnt_nothing_only_the_accuracy_is_compared() -> None:
    """A tenth of the way from the commonest class's 10 % to 100 % is 19 %."""
    found = words(results(gain=-0.4, more=-0.5))
    assert found["accuracy (%)"] == "worse" and found["attack, FGSM: largest change needed"] == "not tested"
    assert "under 19.0 % a network has learnt too little" in section(results(gain=-0.4)).tables[0].note
    assert words(results(gain=-0.25, more=-0.5))["attack, FGSM: largest change needed"] == "worse"


def test_differences_are_those_of_the_figures() -> None:
    """Calibration error by torchmetrics' definition, mean over runs, and means by numpy."""
    chance, found, errors = np.random.default_rng(1), [], {}
    for run in range(3):
        for arrangement in ("bu", "mirror"):
            right, confidence = chance.random(300) < 0.6, chance.uniform(0.3, 1, 300)
            training = Training(NetworkSpec("own.py", arrangement), "mnist", RECIPE, run)
            job = Compare(training, "answers", Size(300, 300, 4, 0.01))
            found.append(result(job, answers(right, confidence), f"{arrangement} {run}"))
            probabilities = torch.tensor(np.stack([confidence, 1 - confidence], 1))
            # torchmetrics takes the largest of the probabilities, so the binary form, of the confidence itself, is ours
            errors[arrangement, run] = float(
                binary_calibration_error(probabilities[:, 0], torch.tensor(right).long(), n_bins=15, norm="l1")
            )
    (table,) = section(found).tables
    row = next(row for row in table.rows if row[0] == "calibration: expected error (%)")
    means = {who: 100 * np.mean([errors[who, run] for run in range(3)]) for who in ("bu", "mirror")}
    assert (float(str(row[2])), float(str(row[3]))) == (
        pytest.approx(means["bu"], abs=0.06),
        pytest.approx(means["mirror"], abs=0.06),
    )


def test_a_table_in_a_sentence() -> None:
    (table,) = section(results(gain=0.3, more=-0.5)).tables
    worse = "calibration: expected error (%); attack, FGSM: largest change needed"  # right on 80 %, sure of 50 %
    assert summary(table) == f"mirror is better at accuracy (%), worse at {worse}; 1 undecided, 0 not tested."


def test_several_attacks_are_corrected_by_holm() -> None:
    """The smallest p of three is multiplied by three: an interval that just misses zero no longer counts."""
    rows = [Property(name, name, 1, lambda pair: None, "attacks") for name in "abc"]
    found = [Finding("", "", Estimate(1, low, 2, p, 3, 9), "") for low, p in ((0.1, 0.03), (0.2, 0.001), (-1, 0.4))]
    assert judged(rows, found) == ["undecided", "better", "undecided"]
    alone = [Property(name, name, -1, lambda pair: None) for name in "abc"]
    assert judged(alone, found) == ["worse", "worse", "undecided"]
    assert judged(rows, [None, found[1], None]) == ["not tested", "better", "not tested"]


def test_compare_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A user's file of one channel and one of three, by `tdc compare`; the second time nothing is left to do."""
    file = tmp_path / "own.py"
    file.write_text(NETWORKS)
    root = write_mnist(tmp_path, train=48, test=24)
    options = [f"{file}:Net", "--data", "mnist", "--data-root", str(root), "--out", str(tmp_path / "out")]
    options += ["--profile", "smoke", "--few", "4", "--steps", "1", "--device", "cpu", "--equal-compute"]
    chosen = ["FGSM", "heat maps", "cost"]
    options += ["--objects", "bright", *(word for name in chosen for word in ("--measure", name))]
    with pytest.raises(SystemExit) as done:
        app(["compare", *options])
    shown = capfd.readouterr()
    assert done.value.code == 0, shown.err
    assert re.search(r"\d+ of 22 jobs to do, about \d+ s here \(BU \d+ s, mirror \d+ s\)", shown.err)
    page = next((tmp_path / "out").glob("compare-*.md")).read_text()
    for said in (
        "accuracy (%)",
        "attack, FGSM",
        "maximum on the object",
        "price: parameters",
    ):
        assert said in page
    assert (
        "tdc compare" in page and "Not measured: consistency, corruptions" in page and f"--out {tmp_path}" not in page
    )
    assert "BU trained for" in page and page.index("tdc compare") < page.index("| accuracy (%)") < page.index("| price")
    with pytest.raises(SystemExit):
        app(["compare", *options])
    assert "jobs to do" not in capfd.readouterr().err


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("td_compiler.benchmarks.extra.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as done:
        app(["compare", "own.py", "--data", "mnist"])
    error = capfd.readouterr().err.strip()
    assert done.value.code == 1 and error.endswith("pip install 'td-compiler[bench]'") and "\n" not in error


def test_refusals_are_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_mnist(tmp_path, train=20, test=10)
    places = ["--data-root", str(root), "--out", str(tmp_path / "out"), "--device", "cpu"]
    for words, said in (
        (["zoo:lenet_fc", "--data", "mnist", "--measure", "hue"], "'hue' is not one of answers, consistency"),
        (["zoo:lenet_fc", "--data", "mnist", "--filters", "bu"], "'bu' is not one of mirror, uniform, reversed"),
        (["zoo:lenet_fc", "--data", "mnist", "--objects", "dark"], "'dark' is not bright"),
        (["zoo:lenet_fc", "--data", f"folder:{tmp_path}/no"], "There is no folder in"),
        (["zoo:lenet", "--data", "mnist"], "lenet"),
        (["torchvision:vit_b_16", "--data", "mnist"], "vit_b_16"),
    ):
        assert compare.main([*words, *places], "tdc compare") == 2
        error = capfd.readouterr().err.strip()
        assert said in error and "\n" not in error
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_grey_images_in_three_channels(tmp_path: Path) -> None:
    where = machine(tmp_path / "out", write_mnist(tmp_path, train=20, test=10))
    grey, colour = (load(name, where, train=False).images for name in ("mnist", "channels:3:mnist"))
    assert colour.shape == (10, 3, 28, 28) and all(torch.equal(colour[:, each], grey[:, 0]) for each in range(3))
    with pytest.raises(DataError, match="3 channels already"):
        load("channels:3:channels:3:mnist", where, train=False)


def test_boxes_and_pixels_of_heat_maps_by_hand() -> None:
    """An object of 4 pixels in 16; a heat map that has it whole from 0.5 on, one with a pixel more, one elsewhere."""
    objects = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    objects[:, :, :2, :2] = True
    heat = torch.zeros(3, 1, 4, 4)
    heat[0, 0, :2, :2] = torch.tensor([[1.0, 0.6], [0.6, 0.6]])
    heat[1, 0, :2, :2], heat[1, 0, 0, 2] = 1.0, 1.0
    heat[2, 0, 3, 3], heat[2, 0, 0, 0] = 1.0, 0.9
    overlaps = box_overlaps(heat, objects)
    at = {level: overlaps[:, round(LEVELS * level)].tolist() for level in (0.0, 0.5, 0.7)}
    assert at[0.0] == pytest.approx([4 / 16, 4 / 16, 4 / 16])  # all pixels: the whole image is one box
    assert at[0.5] == pytest.approx([1, 4 / 6, 1 / 4]) and at[0.7] == pytest.approx([1 / 4, 4 / 6, 1 / 4])
    everything = np.ones((1, 1)), np.ones((1, 3))
    # At 0.5 two of three images reach an overlap of 0.3 and of 0.5, one of three 0.7.
    assert box_accuracy(overlaps.numpy()[None], *everything)[0] == pytest.approx(100 * (2 + 2 + 1) / 9)

    above = pixels_above(heat, objects)
    counts = torch.cat([above, objects.flatten(1).sum(1)[:, None, None].expand(-1, LEVELS, 1)], 2).numpy()[None]
    expected = precision_recall_area(heat, objects)
    assert average_precision(counts.astype(float), *everything)[0] == pytest.approx(100 * expected)


def precision_recall_area(heat: Tensor, objects: Tensor) -> float:
    """By sums over thresholds in a loop."""
    area, before = 0.0, 0.0
    for level in reversed(range(LEVELS)):
        marked = heat >= level / LEVELS
        hits, recall = float((marked & objects).sum()), float((marked & objects).sum() / objects.sum())
        area, before = area + (recall - before) * hits / max(float(marked.sum()), 1), recall
    return area


def test_objects_of_a_folder(tmp_path: Path) -> None:
    """Masks and boxes come in the order of the test images, also of some of them, and are resized and cut as they."""
    root, where = write_folder(tmp_path / "data"), machine(tmp_path / "out", tmp_path)
    assert known_objects(f"folder:{root}") == known_objects("mnist") == ""
    files = sorted((root / "test").rglob("*.png"))
    lines = [f"{path.relative_to(root)},{number},2,{number + 8},12" for number, path in enumerate(files)]
    (root / "boxes.csv").write_text("\n".join(lines))
    assert known_objects(f"folder:{root}") == "boxes"
    boxes = load_objects(f"folder:{root}", where)
    assert boxes.shape == (18, 1, 32, 32) and boxes[5, 0, 2:12, 5:13].all()
    assert boxes.sum((1, 2, 3)).tolist() == [80] * 18
    for number, path in enumerate(files):
        mask = np.zeros((32, 32), np.uint8)
        mask[:16, : 1 + number] = 255
        target = root / "masks" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    assert known_objects(f"folder:{root}") == "masks"
    some = load_objects(f"folder:{root}", where, 4)
    images = load(f"folder:{root}", where, train=False, limit=4)
    numbers = [6 * int(label) + int(image[0, 0, 0]) for image, label in zip(images.images, images.labels, strict=True)]
    assert some.sum((1, 2, 3)).tolist() == [16 * (1 + number) for number in numbers]
    small = load_objects(f"folder:{root}@16", where)  # resized to 20 pixels, of which the middle 16 are seen
    assert small.shape == (18, 1, 16, 16) and small[17, 0, :8, :9].all() and not small[17, 0, 8:].any()
    files[3].with_suffix(".png").rename(root / "test" / "a" / "other.png")
    with pytest.raises(DataError, match="There is no mask"):
        load_objects(f"folder:{root}", where)
