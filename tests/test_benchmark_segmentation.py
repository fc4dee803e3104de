"""The segmentation experiment: meshes, weights and metric against definitions by hand, end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.utils import make_grid

from td_compiler.benchmarks.data.datasets import DataError, Images, load, title
from td_compiler.benchmarks.data.meshes import class_weights, intersection_over_union, label_pixels, make_meshes
from td_compiler.benchmarks.experiments import segmentation
from td_compiler.benchmarks.experiments.segmentation.experiment import overlaps
from td_compiler.benchmarks.experiments.segmentation.networks import NETWORKS, spec_of
from td_compiler.benchmarks.lab.journal import Results
from td_compiler.benchmarks.lab.packing import unpacked
from td_compiler.benchmarks.training.fitting import plateau
from td_compiler.benchmarks.training.recipes import RecipeError
from td_compiler.benchmarks.training.tasks import task_of
from td_compiler.benchmarks.training.training import Training, trained
from tests.support.benchmark_data import RECIPE, machine, write_mnist


def some_images(count: int = 9, classes: int = 3) -> Images:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 5, 7), generator=generator, dtype=torch.uint8)
    images[torch.rand(images.shape, generator=generator) < 0.4] = 0
    return Images(images, torch.arange(count) % classes, tuple("abc"[:classes]))


def test_pixels_get_the_class_of_their_image() -> None:
    data = some_images()
    found = label_pixels(data.images, data.labels, 3)
    for image, label, pixels in zip(data.images, data.labels, found, strict=True):
        for value, pixel in zip(image.flatten().tolist(), pixels.flatten().tolist(), strict=True):
            assert pixel == (int(label) if value / 255 > 0.2 else 4 if value > 0 else 3)
    edge = torch.tensor([0, 1, 51, 52], dtype=torch.uint8).reshape(1, 1, 1, 4)
    assert label_pixels(edge, torch.tensor([2]), 3).flatten().tolist() == [3, 4, 4, 2], "0.2 itself is ignored"


def test_meshes_are_grids() -> None:
    data = some_images(9)
    meshes = make_meshes(data)
    assert meshes.images.shape == (2, 1, 10, 14) and meshes.labels.shape == (2, 10, 14)
    assert meshes.classes == ("a", "b", "c", "background", "ignore")
    pixels = label_pixels(data.images, data.labels, 3)
    for i in range(2):
        four = slice(4 * i, 4 * i + 4)
        assert torch.equal(meshes.images[i], make_grid(data.images[four], nrow=2, padding=0)[:1])
        assert torch.equal(meshes.labels[i], make_grid(pixels[four][:, None], nrow=2, padding=0)[0])
    assert make_meshes(data, 3).images.shape == (1, 1, 15, 21)


def test_the_loss_weighs_background_pixels_over_own_and_is_a_mean_over_pixels() -> None:
    labels = torch.tensor([[[0, 0, 1, 3], [3, 3, 3, 4]]])
    assert class_weights(labels, 5).tolist() == [2.0, 4.0, 0.0, 1.0, 0.0]
    scores = torch.randn(1, 5, 2, 4, dtype=torch.float64)
    data = Images(torch.zeros(1, 1, 2, 4, dtype=torch.uint8), labels, tuple("abcde"))
    logs = F.log_softmax(scores, 1)[0]
    total = 2 * (logs[0, 0, 0] + logs[0, 0, 1]) + 4 * logs[1, 0, 2]
    total = total + logs[3, 0, 3] + logs[3, 1, :3].sum()
    torch.testing.assert_close(task_of("segmentation").loss(data)(scores, labels), -total / 8, msg="of 8 pixels")


def test_the_rate_falls_on_a_plateau_as_the_authors_did() -> None:
    """Keras' ReduceLROnPlateau(factor=0.2, patience=5, min_lr=lr / 10), step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = plateau(optimizer, 0.01)
    best, waited, rate, rates, expected = float("inf"), 0, 0.01, [], []
    for loss in [1.0, 0.9, *[0.9] * 4, 0.95, *[0.91] * 6, 0.5, *[0.6] * 12]:
        schedule.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
        if loss < best - 1e-4:
            best, waited = loss, 0
        else:
            waited += 1
            if waited >= 5:
                rate, waited = max(0.2 * rate, 0.001), 0
        expected.append(rate)
    assert rates == pytest.approx(expected) and sorted(set(expected)) == pytest.approx([0.001, 0.002, 0.01])


def test_the_metric_by_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    true, found = (torch.randint(0, 5, (6, 8, 8), generator=generator) for _ in range(2))
    counted = (true != 4).numpy()
    a, b = true.numpy()[counted], found.numpy()[counted]
    expected = [np.sum((a == k) & (b == k)) / np.sum((a == k) | (b == k)) for k in range(4)]
    each = intersection_over_union(5, "none")(found, true)
    np.testing.assert_allclose(each[:4].numpy(), expected, rtol=1e-6)
    assert float(intersection_over_union(5)(found, true)) == pytest.approx(np.mean(expected), rel=1e-6)
    both = overlaps(found, true, 5).double().sum(0)
    np.testing.assert_allclose(both[:, 0] / both[:, 1], expected)


def test_options_of_reverse_reach_the_network(tmp_path: Path) -> None:
    td = spec_of("td", 4).with_options((("merge", "add"),))
    assert td.label == "mirror, width=4, merge=add"
    counts = [sum(p.numel() for p in spec.build((1, 24, 24), 12).parameters()) for spec in (spec_of("td", 4), td)]
    assert counts[1] < counts[0], "a sum has no convolution"


def test_images_are_not_moved_without_their_labels(tmp_path: Path) -> None:
    here = machine(tmp_path / "out", write_mnist(tmp_path, 16, 8))
    plan = Training(spec_of("td", 2), "meshes:2:mnist", replace(RECIPE, augment="shift-flip"), task="segmentation")
    with pytest.raises(RecipeError, match="moves the images and not the classes of their pixels"):
        trained(plan, here)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_score_every_pixel(name: str) -> None:
    network = spec_of(name, 4).build((1, 24, 32), 12).eval()
    assert network(torch.rand(2, 1, 24, 32)).shape == (2, 12, 24, 32)


def test_sizes_at_the_width_of_the_thesis() -> None:
    def conv(inputs: int, outputs: int, side: int = 3) -> int:
        return inputs * outputs * side**2 + outputs

    def double(inputs: int, width: int) -> int:
        return conv(inputs, width) + conv(width, width) + 4 * width

    encoder = double(1, 64) + double(64, 128) + double(128, 256)
    decoder = conv(256, 128, 2) + double(256, 128) + conv(128, 64, 2) + double(128, 64)
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in spec_of(name, 64).build((1, 56, 56), 12).parameters()) for name in NETWORKS
        }
    assert counts["unet-like"] == encoder + decoder + conv(64, 12, 1)
    assert counts["fcn-light"] == encoder + conv(64, 12, 1) + conv(128, 12, 1) + conv(256, 12, 1)
    # SPEC 2: each body reads its stage's own width; entry, transition and merge at scales 2 and 1.
    norms = 2 * (3 * 128 + 3 * 64)
    between = sum(conv(1, w) + conv(2 * w, w, 1) + conv(2 * w, w) for w in (128, 64))
    coarse, fine = double(1, 256), double(128, 128) + double(64, 64)
    assert counts["td"] == coarse + fine + between + norms + conv(64, 12, 1)


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_mnist(tmp_path, 64, 24)
    words = [
        "--data",
        "mnist",
        "--data-root",
        str(root),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--width",
        "2",
    ]
    words += ["--epochs", "2", "--runs", "1", "--test-images", "5", "--recipe", "batch_size=4", "--no-progress"]
    assert segmentation.main(words, "segmentation") == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "2x2 meshes of MNIST" in shown and "U-Net-like" in shown
    assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 2
    results = list(Results(tmp_path / "out" / "results.jsonl").read().values())
    assert len(results) == 3
    test = load("meshes:2:mnist", machine(tmp_path / "out", root), train=False, limit=5)
    assert title("meshes:2:mnist") == "2x2 meshes of MNIST"
    for result in results:
        assert list(result.figures["iou"]) == list(test.classes[:-1]), "every class but the ignored one"
        there = [value for name, value in result.figures["iou"].items() if test.classes.index(name) in test.labels]
        assert np.mean(there) == pytest.approx(result.figures["mean_iou"], abs=0.25)
        example = result.figures["examples"][0]
        assert np.array_equal(unpacked(example["image"]), test.images[0].numpy())
        assert np.array_equal(unpacked(example["true"]), test.labels[0].numpy())


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_mnist(tmp_path, 8, 8)
    common = ["--data", "mnist", "--data-root", str(root), "--out", str(tmp_path / "out"), "--no-progress"]
    assert segmentation.main([*common, "--network", "vnet"], "segmentation") == 2
    assert "There is no network 'vnet' for segmentation, only fcn-light" in capsys.readouterr().err
    with pytest.raises(DataError, match="after the colon comes the number of images a side"):
        load("meshes:two:mnist", machine(tmp_path / "out", root), train=True)
    with pytest.raises(DataError, match="with a class each"):
        load("meshes:2:meshes:2:mnist", machine(tmp_path / "out", root), train=True)
