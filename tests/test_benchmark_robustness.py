"""The robustness experiment: attacks against what a linear classifier allows, corruptions against other libraries."""

from __future__ import annotations

import colorsys
import json
import struct
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from td_compiler import reverse, zoo
from td_compiler.benchmarks.attacks.attacks import ATTACKS, smallest_perturbations
from td_compiler.benchmarks.attacks.corruptions import CORRUPTIONS, SEVERITIES
from td_compiler.benchmarks.attacks.filters import gaussian_blur, plasma, shifted_sum, warp, zoomed
from td_compiler.benchmarks.attacks.pointwise import BatchedPointwiseAttack
from td_compiler.benchmarks.attacks.single_pixel import SinglePixelAttack
from td_compiler.benchmarks.experiments.robustness import main
from td_compiler.benchmarks.experiments.robustness.curves import loss_curve
from td_compiler.benchmarks.experiments.robustness.groups import AttackRun, Comparison, compared, corrupted
from td_compiler.benchmarks.experiments.robustness.section import corruption_error
from td_compiler.benchmarks.experiments.robustness.vulnerability import still_right
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.packing import packed, unpacked
from td_compiler.benchmarks.lab.table import Arm, Setting
from td_compiler.benchmarks.training.training import Normalise, Normalised

L2 = foolbox.distances.l2


class Linear(nn.Module):
    """Class 1 where <weight, image> > threshold, else class 0: the distance to the other class is known."""

    weight: Tensor

    def __init__(self, weight: Tensor, threshold: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        margin = (images * self.weight).sum((1, 2, 3)) - self.threshold
        return torch.stack([-margin, margin], 1)

    def margin(self, images: Tensor) -> Tensor:
        """How far <weight, image> is from the threshold (N,)."""
        scores: Tensor = self(images)
        return scores[:, 1].abs()


@pytest.fixture
def linear() -> Linear:
    """Weights that vary smoothly and differ from pixel to pixel, so that all kinds of attack have something to find."""
    ramp = torch.linspace(-1, 1, 8, dtype=torch.float64)
    weight = ramp[:, None] * 0.5 + ramp[None] + 0.3 * torch.cos(torch.arange(64.0)).view(8, 8) + 0.2
    return Linear(weight.float().expand(1, 1, 8, 8).clone(), 1.0).eval()


@pytest.fixture
def images() -> Tensor:
    """Twelve grey images (12, 1, 8, 8): a bright spot in one corner or another, a bit of noise everywhere."""
    generator = torch.Generator().manual_seed(5)
    noise = 0.1 + 0.4 * torch.rand(12, 1, 8, 8, generator=generator)
    noise[::2, :, 4:, 4:] += 0.25
    noise[1::2, :, :4, :4] += 0.25
    return noise


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_fools_by_no_less_than_the_distance_to_the_boundary(name: str, linear: Linear, images: Tensor) -> None:
    labels = linear(images).argmax(1)
    torch.manual_seed(0)
    perturbed, fooled = smallest_perturbations(name, linear, images, labels, steps=10, repeats=2)
    distances = (perturbed - images).flatten(1).norm(dim=1)
    assert fooled.any(), "the attack found nothing, so the test would show nothing"
    assert torch.equal(linear(perturbed).argmax(1)[fooled] != labels[fooled], fooled[fooled])
    assert (distances >= linear.margin(images) / linear.weight.norm() - 1e-4)[fooled].all()
    assert perturbed.min() >= -1e-6
    assert perturbed.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", [name for name, row in ATTACKS.items() if row.repeated])
def test_repetition_keeps_the_smaller_perturbation(name: str, linear: Linear, images: Tensor) -> None:
    labels = linear(images).argmax(1)
    distances = []
    for repeats in (1, 4):
        torch.manual_seed(0)  # the first of four attempts is the single one
        perturbed, fooled = smallest_perturbations(name, linear, images, labels, steps=6, repeats=repeats)
        norms = (perturbed - images).flatten(1).norm(dim=1)
        distances.append(torch.where(fooled, norms, torch.inf))
    assert (distances[1] <= distances[0] + 1e-6).all()
    assert (distances[1] < distances[0]).any() or name == "single pixel"


def test_search_finds_the_smallest_contrast_reduction(linear: Linear, images: Tensor) -> None:
    """On the straight way to grey the boundary of a linear classifier is crossed once, at a place that is known."""
    labels = linear(images).argmax(1)
    perturbed, fooled = smallest_perturbations("contrast reduction", linear, images, labels, steps=10, repeats=1)
    way = 0.5 - images
    share = (1.0 - (images * linear.weight).sum((1, 2, 3))) / (way * linear.weight).sum((1, 2, 3))
    reachable = (share > 0) & (share < 1)
    assert torch.equal(fooled, reachable)
    expected = (share * way.flatten(1).norm(dim=1))[fooled]
    found = (perturbed - images).flatten(1).norm(dim=1)[fooled]
    step = 4.0 / 10 / 2**5  # black to grey is 4 for 64 pixels; ten steps, halved five times
    assert fooled.sum() > 2
    assert ((found >= expected - 1e-5) & (found <= expected + step + 1e-5)).all()


def test_fgsm_finds_the_smallest_bound(linear: Linear, images: Tensor) -> None:
    """Against a linear classifier the sign of the gradient is the best direction: margin / ||w||_1 is enough."""
    images = images.clamp(0.3, 0.7)  # far from black and white, where clipping would make it harder
    perturbed, fooled = smallest_perturbations("FGSM", linear, images, linear(images).argmax(1), steps=20, repeats=1)
    expected = linear.margin(images) / linear.weight.abs().sum()
    within = expected < 0.25
    found = (perturbed - images).flatten(1).abs().amax(1)
    assert within.sum() > 2
    assert fooled[within].all()
    assert ((found >= expected - 1e-5) & (found <= expected + 1 / 20 / 2**5 + 1e-5))[within].all()


@pytest.mark.parametrize("channels", [1, 3])
def test_single_pixel_succeeds_where_some_pixel_does(linear: Linear, images: Tensor, channels: int) -> None:
    network = Linear(linear.weight.expand(1, channels, 8, 8) / channels, 1.0).eval()
    images = images.expand(-1, channels, -1, -1).clone()
    images[:6] *= (1 / (images[:6] * network.weight).sum((1, 2, 3)).abs().clamp(min=0.5))[:, None, None, None].clamp(
        max=1
    )
    labels = network(images).argmax(1)
    possible = torch.zeros(12, dtype=torch.bool)
    for row in range(8):
        for column in range(8):
            for bound in (0.0, 1.0):
                changed = images.clone()
                changed[:, :, row, column] = bound
                possible |= network(changed).argmax(1) != labels
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    perturbed, _, fooled = SinglePixelAttack(distance=L2)(model, images, labels, epsilons=None)
    assert torch.equal(fooled, possible)
    assert possible.any()
    assert not possible.all()
    touched = (perturbed != images).any(1).flatten(1).sum(1)
    assert torch.equal(touched, fooled.long())
    values = perturbed[fooled].movedim(1, 3)[(perturbed != images)[fooled].any(1)]  # (fooled, C)
    assert ((values == 0).all(1) | (values == 1).all(1)).all()


def test_single_pixel_leaves_misclassified_images_alone(linear: Linear, images: Tensor) -> None:
    model = foolbox.PyTorchModel(linear, bounds=(0, 1), device="cpu")
    wrong = 1 - linear(images).argmax(1)
    perturbed, _, fooled = SinglePixelAttack(distance=L2)(model, images, wrong, epsilons=None)
    assert fooled.all()
    assert torch.equal(perturbed, images)


def test_attacks_refuse_targets(linear: Linear, images: Tensor) -> None:
    model = foolbox.PyTorchModel(linear, bounds=(0, 1), device="cpu")
    with pytest.raises(ValueError, match="untargeted"):
        SinglePixelAttack(distance=L2)(model, images, foolbox.TargetedMisclassification(torch.zeros(12)), epsilons=None)


def _pointwise_distances(attack: foolbox.Attack, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    torch.manual_seed(1)
    perturbed, _, fooled = attack(model, images, labels, epsilons=None)
    assert fooled.all()
    return (perturbed - images).flatten(1).norm(dim=1)


def test_pointwise_is_as_good_as_foolbox_s(linear: Linear, images: Tensor) -> None:
    labels = linear(images).argmax(1)
    start = foolbox.attacks.SaltAndPepperNoiseAttack(steps=400)
    theirs = foolbox.attacks.PointwiseAttack(start)
    theirs._distance = L2  # its constructor does not take a distance
    ours = BatchedPointwiseAttack(start, distance=L2)
    np.random.seed(1)
    found = _pointwise_distances(ours, linear, images, labels)
    reference = _pointwise_distances(theirs, linear, images, labels)
    assert float(found.mean()) == pytest.approx(float(reference.mean()), rel=0.15)


def test_pointwise_leaves_no_value_that_could_be_reset(linear: Linear, images: Tensor) -> None:
    labels = linear(images).argmax(1)
    model = foolbox.PyTorchModel(linear, bounds=(0, 1), device="cpu")
    torch.manual_seed(2)
    attack = BatchedPointwiseAttack(foolbox.attacks.SaltAndPepperNoiseAttack(steps=20), distance=L2, max_passes=0)
    perturbed, _, fooled = attack(model, images, labels, epsilons=None)
    resettable = 0
    assert fooled.sum() > 3
    for number in fooled.nonzero().flatten().tolist():
        assert not torch.equal(perturbed[number], images[number])
        for place in (perturbed[number] != images[number]).nonzero().tolist():
            tried = perturbed[number : number + 1].clone()
            tried[(0, *place)] = images[(number, *place)]
            resettable += int(linear(tried).argmax(1) != labels[number])
    assert resettable == 0


def test_vulnerability_is_that_of_the_scales_that_see_the_perturbation() -> None:
    """A fine chequerboard vanishes at coarse scales: there nothing may change, at the finest scale it must."""
    torch.manual_seed(3)
    clean = 0.3 + 0.4 * torch.rand(40, 1, 28, 28)
    network = Normalised(Normalise(torch.full((1, 28, 28), 0.1), torch.ones(1, 1, 1)), reverse(zoo.lenet_fc()))
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0  # one pass in training mode makes the statistics those of these images
    network.train()(clean)
    network.eval()
    board = (torch.arange(28)[:, None] + torch.arange(28)) % 2 * 2.0 - 1
    perturbed = clean + 0.3 * board
    labels = network(clean).argmax(1)
    right = still_right(network, clean, perturbed, labels)
    assert list(right) == ["1", "2", "4", "1+2", "1+4", "2+4", "1+2+4"]
    assert right["1+2+4"] == int((network(perturbed).argmax(1) == labels).sum())
    assert min(right[scales] for scales in ("2", "4", "2+4")) >= 36  # the image's borders leave a trace of it
    assert right["1"] < 20
    assert still_right(network, clean, clean, labels) == dict.fromkeys(right, 40)


# Corruptions


@pytest.fixture
def photos() -> Tensor:
    """Six smooth colour images (6, 3, 32, 32) in [0, 1], in 256 levels."""
    torch.manual_seed(4)
    smooth = gaussian_blur(torch.rand(6, 3, 32, 32), 2.0)
    low, high = smooth.amin((1, 2, 3), keepdim=True), smooth.amax((1, 2, 3), keepdim=True)
    return ((smooth - low) / (high - low) * 255).round() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 28, 28), (3, 20, 36)])
def test_corruption_keeps_shape_and_range_and_grows(name: str, size: tuple[int, int, int], photos: Tensor) -> None:
    images = torch.nn.functional.interpolate(photos[:, : size[0]], size[1:], mode="bilinear").clamp(0, 1)
    changes = []
    for severity in SEVERITIES:
        torch.manual_seed(0)
        corrupted = CORRUPTIONS[name](images, severity)
        torch.manual_seed(0)
        assert torch.equal(corrupted, CORRUPTIONS[name](images, severity))
        assert corrupted.shape == images.shape
        assert torch.equal((corrupted * 255).round() / 255, corrupted)
        assert 0 <= corrupted.min() <= corrupted.max() <= 1
        changes.append(float((corrupted - images).square().mean()))
    assert changes[0] > 0
    assert changes[4] > changes[0] or name == "elastic transform"  # whose first severity has the largest affine part


def test_gaussian_blur_is_scipy_s(photos: Tensor) -> None:
    expected = ndimage.gaussian_filter(photos.double().numpy(), (0, 0, 1.3, 1.3), mode="nearest", radius=6)
    assert np.abs(gaussian_blur(photos.double(), 1.3).numpy() - expected).max() < 1e-12


def test_brightness_is_that_of_hsv(photos: Tensor) -> None:
    corrupted = CORRUPTIONS["brightness"](photos, 3)
    for y, x in [(0, 0), (7, 20), (31, 31), (16, 3)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*photos[2, :, y, x].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1))
        assert corrupted[2, :, y, x].tolist() == pytest.approx(expected, abs=0.5 / 255 + 1e-6)


def test_noises_have_their_variance() -> None:
    grey = torch.full((20, 1, 64, 64), 0.5)
    torch.manual_seed(0)
    gaussian = CORRUPTIONS["Gaussian noise"](grey, 3) - grey
    shot = CORRUPTIONS["shot noise"](grey, 3) - grey
    impulse = CORRUPTIONS["impulse noise"](grey, 4)
    assert gaussian.std().item() == pytest.approx(0.08, rel=0.02)
    assert shot.std().item() == pytest.approx((0.5 / 100) ** 0.5, rel=0.02)  # a Poisson count of mean 50, over 100
    assert [(impulse == bound).float().mean().item() for bound in (0, 1)] == pytest.approx([0.025, 0.025], rel=0.1)


def test_motion_blur_spreads_a_point_along_a_line() -> None:
    point = torch.zeros(2, 1, 21, 21, dtype=torch.float64)
    point[:, :, 10, 10] = 1
    moved = shifted_sum(point, torch.tensor([0.0, torch.pi / 2], dtype=torch.float64), 2.0)
    weights = np.exp(-0.5 * (np.arange(7) / 2.0) ** 2)
    expected = np.zeros(21)
    expected[10 - np.arange(7)] = weights / weights.sum()
    assert moved[0, 0, 10].numpy() == pytest.approx(expected)
    assert moved[1, 0, :, 10].numpy() == pytest.approx(expected)
    assert moved.sum((1, 2, 3)).tolist() == pytest.approx([1, 1])


def clipped_zoom(images: Any, factor: float) -> Any:
    """By scipy, step by step as in the code that made CIFAR-10-C."""
    side = images.shape[-1]
    cut = int(np.ceil(side / factor))
    top = (side - cut) // 2
    grown = ndimage.zoom(images[..., top : top + cut, top : top + cut], (1, 1, factor, factor), order=1)
    trim = (grown.shape[2] - side) // 2
    return grown[..., trim : trim + side, trim : trim + side]


@pytest.mark.parametrize("side", [28, 32, 45])
def test_zoom_is_that_of_cifar_10_c(side: int) -> None:
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    for factor in (1.0, 1.04, 1.11, 1.25, 2.25):
        np.testing.assert_allclose(zoomed(images, factor), clipped_zoom(images.numpy(), factor), atol=1e-12)


def test_zoom_blur_is_that_of_cifar_10_c(photos: Tensor) -> None:
    ranges = [np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)]
    for severity, factors in zip(SEVERITIES, ranges, strict=True):
        images = photos.double().numpy()
        expected = (images + sum(clipped_zoom(images, factor) for factor in factors)) / (len(factors) + 1)
        found = CORRUPTIONS["zoom blur"](photos.double(), severity).numpy()
        assert np.abs(found - expected).max() <= 0.5 / 255 + 1e-6


def test_zoom_and_warp_leave_images_where_nothing_moves(photos: Tensor) -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    here = torch.stack([columns, rows], -1).expand(6, 32, 32, 2)
    assert torch.allclose(zoomed(photos, 1.0), photos, atol=1e-5)
    assert torch.allclose(warp(photos, here), photos, atol=1e-4)
    right = warp(photos, here + torch.tensor([1.0, 0.0]))
    assert torch.allclose(right[..., :-1], photos[..., 1:], atol=1e-4)


def test_plasma_fills_the_unit_interval_and_is_smoother_with_decay() -> None:
    torch.manual_seed(0)
    rough, smooth = (plasma(torch.zeros(8, 3, 32, 48), decay) for decay in (1.2, 3.0))
    assert rough.shape == (8, 1, 32, 48)
    assert torch.equal(smooth.amin((1, 2, 3)), torch.zeros(8))
    assert torch.equal(smooth.amax((1, 2, 3)), torch.ones(8))
    assert smooth.diff(dim=3).abs().mean() < 0.5 * rough.diff(dim=3).abs().mean()


# Figures


def run_of(right: list[int], l2: list[float | None]) -> AttackRun:
    linf = [None if each is None else each / 10 for each in l2]
    return AttackRun.of({"right": packed(right), "l2": l2, "linf": linf})


def test_figures_of_an_attack() -> None:
    run = run_of([1, 0, 1, 1, 1, 1, 0, 1, 1, 1], [0.5, None, 1.0, None, 1.0, 2.0, None, None, 7.0, None])
    assert run.images == 10
    assert run.success == 5 / 8
    assert run.median == 4.5  # of 0.5 1 1 2 7 and three that were not fooled
    assert run.lost_within(1.0) == 3 / 10, "points of all test images"
    assert run.accuracy_within(0.1) == 5 / 10
    assert run_of([1] * 8 + [0] * 2, [0.5, 1.0, *[None] * 8]).median is None
    assert loss_curve([run, run_of([1] * 10, [None] * 10)], [0.0, 1.0]) == [0.0, 15.0]


def setting_of(attacks: dict[str, tuple[Any, Any]], runs: int = 3) -> Setting:
    """By attack the distances (R, N) of BU and of TD; all images are right."""

    def arm(attack: str, way: str, distances: Any) -> Arm:
        found = {}
        for seed in range(runs):
            each = [None if np.isinf(d) else float(d) for d in distances[seed]]
            figures = {"right": packed([1] * len(each)), "l2": each, "linf": each}
            found[seed] = Result("k", "robustness", "n", {}, {}, figures, "c", {}, 1.0, "2026")
        return Arm({"attack": attack, "arrangement": way, "options": ()}, found)

    ways = [(attack, way, d) for attack, pair in attacks.items() for way, d in zip(("bu", "mirror"), pair, strict=True)]
    return Setting({}, [arm(*each) for each in ways])


def compared_mirror(setting: Setting) -> dict[str, Comparison]:
    arm = setting.arm("mirror")
    assert arm is not None
    return compared(setting, arm)


def test_networks_are_compared_image_by_image() -> None:
    chance = np.random.default_rng(0)
    bottom_up = np.exp(chance.normal(0, 1, (3, 200)))
    noise = np.exp(chance.normal(0, 0.3, (3, 200)))
    never = np.full((3, 200), np.inf)
    pairs = {
        "single pixel": (bottom_up, 1.5 * bottom_up * noise),
        "salt and pepper": (bottom_up, 0.5 * bottom_up * noise),
        "pointwise": (bottom_up, bottom_up * noise),
        "shifts": (never, never),
        "Gaussian blur": (bottom_up, never),
    }
    found = compared_mirror(setting_of(pairs))
    assert {name: each.word for name, each in found.items()} == {
        "single pixel": "larger",
        "salt and pepper": "smaller",
        "pointwise": "undecided",
        "shifts": "undecided",  # a tie: neither was ever fooled
        "Gaussian blur": "larger",
    }
    ratio = found["single pixel"].ratio
    assert ratio.low < np.median(1.5 * noise) < ratio.high
    assert ratio.value == pytest.approx(np.median(1.5 * noise), rel=0.01)
    assert found["shifts"].ratio.value == 1 and found["Gaussian blur"].ratio.low == np.inf
    assert found["Gaussian blur"].mcnemar < 1e-6 < found["shifts"].mcnemar == 1
    assert not compared_mirror(setting_of({"shifts": (never, never)}, runs=2)), "two runs are too few"


def test_corruptions_are_compared_image_by_image() -> None:
    """Of five severities BU fails at three, TD at two or, under the second corruption, at three more or less."""
    chance, wrong = np.random.default_rng(0), {}
    wrong["bu"] = np.full((3, 300, 2), 3)
    wrong["mirror"] = np.stack([np.full((3, 300), 2), 3 + chance.integers(-1, 2, (3, 300))], 2)
    names = ("fog", "snow")

    def arm(way: str) -> Arm:
        figures = [{"wrong": packed(each), "errors": dict.fromkeys(names)} for each in wrong[way]]
        runs = {seed: Result("k", "robustness", "n", {}, {}, f, "c", {}, 1.0, "2026") for seed, f in enumerate(figures)}
        return Arm({"arrangement": way, "options": ()}, runs)

    setting = Setting({}, [arm("bu"), arm("mirror")])
    found = corrupted(setting, setting.arms[1])
    assert list(found) == list(names)
    fog, snow = found["fog"], found["snow"]
    assert (fog[0].value, fog[0].high) == pytest.approx((-20, -20)) and fog[1] < 0.01
    assert snow[0].low < 0 < snow[0].high and snow[1] > 0.05


def test_corruption_error_is_relative() -> None:
    assert corruption_error([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.4, 0.6, 0.8, 1.0]) == pytest.approx(0.5)
    assert corruption_error([0.1] * 5, [0.0] * 5) is None


# The whole experiment


def _write_mnist(root: Path, count: int = 60) -> None:
    """MNIST's files with images of two classes: a bright bar, upright or lying."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = np.arange(count, dtype=np.uint8) % 2
        pixels = rng.integers(0, 40, (count, 28, 28), dtype=np.uint8)
        pixels[labels == 0, :, 10:18] = 230
        pixels[labels == 1, 10:18, :] = 230
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


def test_experiment_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_mnist(tmp_path / "data")
    chosen = ["salt and pepper", "Gaussian blur", "PGD"]
    arguments = ["lenet_fc", "--profile", "smoke", "--images", "6", "--test-images", "10", "--no-progress"]
    arguments += [word for name in chosen for word in ("--attack", name)]
    arguments += ["--device", "cpu", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(arguments, "python -m benchmarks robustness") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    attacks = [line for line in lines if "attack" in line["job"]]
    corruptions = [line for line in lines if "attack" not in line["job"]]
    assert sorted(line["job"]["attack"] for line in attacks) == sorted(2 * chosen)
    for line in attacks:
        figures = line["figures"]
        assert (figures["test_images"], figures["train_images"]) == (6, 60)
        right = unpacked(figures["right"])
        assert [each is None for each in figures["l2"]] == [each is None for each in figures["linf"]]
        assert all(right[i] for i, each in enumerate(figures["l2"]) if each is not None)
        assert ("scales" in figures) == (line["job"]["training"]["network"]["arrangement"] == "mirror")
    assert [set(line["figures"]["errors"]) for line in corruptions] == [set(CORRUPTIONS)] * 2
    assert len(list((tmp_path / "out" / "figures").glob("robustness-*.png"))) == 3
    shown = capsys.readouterr().out
    assert "Input vulnerability" in shown
    assert "JPEG compression" in shown
    written = (tmp_path / "out" / "results.jsonl").stat().st_mtime_ns
    assert main(arguments, "python -m benchmarks robustness") == 0
    assert (tmp_path / "out" / "results.jsonl").stat().st_mtime_ns == written


def test_unknown_attack_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lenet_fc", "--attack", "pontwise", "--out", str(tmp_path)], "python -m benchmarks robustness") == 2
    assert "did you mean 'pointwise'" in capsys.readouterr().err
