"""Heat maps and localisation, against autograd by hand and counts by hand; the two experiments end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn

from td_compiler import TopDownNet, zoo
from td_compiler.benchmarks.data.datasets import load
from td_compiler.benchmarks.experiments.heatmaps import explain, localise
from td_compiler.benchmarks.experiments.heatmaps.explain import Explain, encode
from td_compiler.benchmarks.experiments.heatmaps.explainer import Explainer, at_image_size
from td_compiler.benchmarks.experiments.heatmaps.figures import decode
from td_compiler.benchmarks.experiments.heatmaps.localise import Localise, blob, covered
from td_compiler.benchmarks.experiments.heatmaps.tables import BASELINES, FORMS, counts, measures
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.training import Normalised, Training
from td_compiler.report.heat_maps import to_unit
from tests.support.benchmark_data import NETWORKS, RECIPE, write_mnist


class GuidedReLU(torch.autograd.Function):
    """Springenberg et al. 2015, section 3.4: what flows back is cut off where it, or the input, is negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient.clamp(min=0) * (x > 0)


class Guided(nn.Module):
    """A small network whose activation can be exchanged."""

    relu = staticmethod(F.relu)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.first(images)), 2)
        return self.fc(self.relu(self.second(x)).mean((2, 3)))


def by_hand(maps: Tensor, score: Tensor) -> Tensor:
    """Grad-CAM by its definition (Selvaraju et al. 2017, equations 1 and 2), before the ReLU."""
    (gradient,) = torch.autograd.grad(score.sum(), maps)
    return (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).detach()


def test_grad_cam_is_that_of_its_definition() -> None:
    model = zoo.lenet_fc().double().eval()
    images, classes = torch.rand(3, 1, 28, 28, dtype=torch.float64), torch.tensor([1, 7, 1])
    explainer = Explainer(model, (1, 28, 28))
    maps = model.features(images)
    found = model.flatten(model.pool(model.head(maps))).gather(1, classes[:, None])
    torch.testing.assert_close(explainer.grad_cam(images, classes, "stage4"), by_hand(maps, found))


def test_saliency_is_the_largest_gradient_over_channels() -> None:
    model = Guided().eval()
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images)[:, 2].sum(), images)
    found = Explainer(model, (3, 16, 16)).saliency(images, torch.tensor([2, 2]))
    torch.testing.assert_close(found, gradient.abs().amax(1, keepdim=True))


def test_guided_backpropagation_reaches_functional_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Guided().eval()
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    explainer = Explainer(model, (3, 16, 16))
    found = explainer.guided_backpropagation(images, torch.tensor([2, 2]))
    monkeypatch.setattr(Guided, "relu", staticmethod(GuidedReLU.apply))
    (gradient,) = torch.autograd.grad(model(images)[:, 2].sum(), images)
    assert explainer.has_relu
    torch.testing.assert_close(found, gradient.abs().amax(1, keepdim=True))
    assert not torch.allclose(found, explainer.saliency(images, torch.tensor([2, 2])))


def test_overlap_counts_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    heat, objects = torch.rand(5, 1, 6, 7, generator=generator), torch.rand(5, 1, 6, 7, generator=generator) > 0.6
    objects[4] = False
    heat[4] = 0  # an empty map of an empty image: all ratios are 0
    found = (heat > 0.3).numpy()
    pairs = [
        (set(zip(*a.nonzero(), strict=True)), set(zip(*b.nonzero(), strict=True)))
        for a, b in zip(found, objects.numpy(), strict=True)
    ]
    hits, marked, there = (sum(map(len, sets)) for sets in ([a & b for a, b in pairs], *zip(*pairs, strict=True)))
    each = np.mean([len(a & b) / max(len(a | b), 1) for a, b in pairs])
    pixels = torch.cat([covered(heat, objects, 0.3), objects.flatten(1).sum(1)[:, None]], 1).numpy()
    result = measures(pixels)
    assert 0 < hits < min(marked, there)
    assert result["precision"] == pytest.approx(hits / marked)
    assert result["recall"] == pytest.approx(hits / there)
    assert result["iou"] == pytest.approx(hits / (marked + there - hits))
    assert result["image_iou"] == pytest.approx(5 / 4 * each), "of the images with an object"
    one = measures(pixels[:1])
    expected = len(pairs[0][0] & pairs[0][1]) / len(pairs[0][0] | pairs[0][1])
    assert one["iou"] == one["image_iou"] == pytest.approx(expected)


def test_heat_maps_are_cut_off_below_zero_after_they_have_grown() -> None:
    maps = torch.tensor([[-3.0, 1.0], [-2.0, -1.0]]).reshape(1, 1, 2, 2)
    grown = at_image_size(maps, (1, 1, 4, 4))
    expected = np.clip(
        np.asarray(Image.fromarray(maps[0, 0].numpy()).resize((4, 4), Image.Resampling.BILINEAR)), 0, None
    )
    np.testing.assert_allclose(to_unit(grown)[0, 0], expected / expected.max(), atol=1e-6)
    assert torch.equal(to_unit(-torch.ones(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))


def test_pictures_survive_as_text() -> None:
    for channels in (1, 3):
        image = torch.rand(channels, 5, 7)
        back = decode(encode(image))
        assert back.shape == ((5, 7) if channels == 1 else (5, 7, 3))
        np.testing.assert_allclose(back.reshape(5, 7, channels), image.permute(1, 2, 0), atol=0.5 / 255 + 1e-6)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "nets.py").write_text(NETWORKS)
    return Machine(folder / "out", write_mnist(folder / "data"), device="cpu", progress=False)


def training(machine: Machine, arrangement: str) -> Training:
    network = NetworkSpec(f"{machine.data_root.parent / 'nets.py'}:Net", arrangement)
    return Training(network, "mnist", replace(RECIPE, epochs=1), train_images=64)


def biased(spec: NetworkSpec) -> Normalised:
    """An untrained network, always the same, that finds class 6 everywhere."""
    torch.manual_seed(0)
    network = spec.build((1, 28, 28), 10).eval()
    with torch.no_grad():
        network.get_parameter("7.weight")[6].abs_()  # so that every activation is evidence for it
        network.get_parameter("7.bias")[6] += 100
    return Normalised(nn.Identity(), network)


def with_biased(job: Localise, monkeypatch: pytest.MonkeyPatch) -> dict[Training, Normalised]:
    """The networks of a job, which are taken for trained ones and for those with random weights."""
    networks = {each: biased(each.network) for each in (job.bottom_up, job.training)}
    monkeypatch.setattr(
        localise, "trained", lambda each, machine: SimpleNamespace(network=networks[each], train_images=64)
    )
    monkeypatch.setattr(localise, "untrained", lambda each, machine: networks[each])
    return networks


def test_localisation_is_that_of_heat_maps_by_hand(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Localise(training(machine, "mirror"), training(machine, "bu"), threshold=0.3)
    networks = with_biased(job, monkeypatch)
    figures = job.run(machine)
    test = load("mnist", machine, train=False)
    images, right = test.images / 255, test.labels == 6
    assert figures["images"] == int(right.sum()) == 10
    assert (figures["test_images"], figures["train_images"]) == (100, 64)
    bottom_up: Any
    top_down: Any
    bottom_up, top_down = (each.net for each in networks.values())
    images, labels = images[right], test.labels[right]
    objects = (images > 0.3).numpy()

    assert isinstance(top_down, TopDownNet) and isinstance(bottom_up, nn.Sequential)
    fine = top_down.stage_maps(top_down.pyramid(images))[-1]
    body, head = (nn.Sequential(*layers) for layers in (list(bottom_up)[:5], list(bottom_up)[5:]))
    coarse = body(images)
    scores = {
        "bottom_up": (coarse, head(coarse)),
        "top_down": (fine, top_down.forward_head(fine)),
    }
    for side, (maps, found) in scores.items():
        native = by_hand(maps, found.gather(1, labels[:, None]))
        for form, maps in zip(FORMS, (native, native - native.mean((2, 3), keepdim=True)), strict=True):
            heat = F.interpolate(maps, (28, 28), mode="bilinear").clamp(min=0).numpy()
            marked = heat > 0.3 * heat.max((1, 2, 3), keepdims=True)
            assert 0 < (marked & objects).sum() < marked.sum()
            expected = [(marked & objects).sum(), marked.sum(), objects.sum()]
            assert run_counts(figures, side, form).sum(0) == pytest.approx(expected, rel=1e-3)
            assert (run_counts(figures, side, form).any(1) == right.numpy()).all(), "image by image"
            assert (run_counts(figures, f"{side}, random", form) == run_counts(figures, side, form)).all()


def run_counts(figures: dict[str, Any], who: str, form: str) -> Any:
    return counts(Result("k", "localise", "n", {}, {}, figures, "c", {}, 1.0, "2026"), who, "last", form)


def test_baselines_know_nothing_of_the_image(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole image covers all of every object, and no more of it than its share; the blob is scipy's Gaussian."""
    job = Localise(training(machine, "mirror"), training(machine, "bu"))
    with_biased(job, monkeypatch)
    figures = job.run(machine)
    assert set(figures["maps"]) == {"bottom_up", "top_down", *BASELINES}
    whole = run_counts(figures, "whole image", FORMS[0])
    whole = whole[whole[:, 2] > 0]
    assert len(whole) == figures["images"] > 0 and (whole[:, 1] == 28 * 28).all() and (whole[:, 0] == whole[:, 2]).all()
    point = np.zeros((29, 29))
    point[14, 14] = 1
    expected = ndimage.gaussian_filter(point, 29 / 4, mode="constant", truncate=9)
    np.testing.assert_allclose(blob((1, 1, 29, 29))[0, 0], expected / expected.max(), rtol=1e-5)


def test_explaining_test_images_takes_one_of_each_class(machine: Machine) -> None:
    figures = Explain(training(machine, "mirror"), None, "mnist", count=3).run(machine)
    assert [image["explained"][0] for image in figures["images"]] == ["0", "1", "2"]  # MNIST's classes: `0 - zero`
    assert figures["taps"] == ["input", "stage4", "stage1"]
    for image in figures["images"]:
        assert list(image["maps"]) == [*figures["taps"], "saliency", "guided"]
        assert all(decode(each).shape == (28, 28) for each in image["maps"].values())


@pytest.fixture
def photo(machine: Machine, tmp_path: Path) -> Path:
    Image.fromarray((torch.rand(40, 60, 3) * 255).to(torch.uint8).numpy()).save(tmp_path / "a photo.png")
    return tmp_path / "a photo.png"


def run_explain(machine: Machine, photo: Path, out: Path, *options: str) -> int:
    source = str(machine.data_root.parent / "nets.py") + ":Net"
    size = ("--side", "28", "--classes", "10", "--out", str(out), "--data-root", str(photo.parent))
    return explain.main([source, "--photo", photo.name, *size, *options], "explain")


def test_photographs_are_explained_by_given_weights(machine: Machine, photo: Path, tmp_path: Path) -> None:
    spec = NetworkSpec(f"{machine.data_root.parent / 'nets.py'}:Net")
    model = spec.build((3, 28, 28), 10)
    with torch.no_grad():
        model[-1].bias[6] += 100
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    weights = ("--weights", f"bu={tmp_path / 'net.safetensors'}")
    assert run_explain(machine, photo, tmp_path / "out", *weights, "--untrained") == 0
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    found = {each["job"]["given"]["network"]["arrangement"]: each["figures"] for each in results}
    assert found["bu"]["images"][0]["found"] == "class 6"
    assert found["bu"]["taps"] == ["input", "stage1", "stage4"] and found["mirror"]["taps"] == [
        "input",
        "stage4",
        "stage1",
    ]
    assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 2  # given weights for BU, none for TD


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "bu"), "ARRANGEMENT=FILE"),
        (("--weights", "bu=missing.safetensors", "--untrained"), "missing.safetensors cannot be read"),
        (("--photo", "missing.jpg", "--untrained"), "There is no image missing.jpg"),
        ((), "bu has no weights, and the heat map of an untrained network says nothing"),
    ],
)
def test_bad_input_is_said_in_a_line(
    machine: Machine,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert run_explain(machine, photo, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and len(said) == 1


def test_localisation_from_one_command(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--epochs", "1", "--train-images", "64", "--test-images", "30", "--runs", "2", "--no-progress")
    source = str(machine.data_root.parent / "nets.py") + ":Net"
    where = ("--data-root", str(machine.data_root), "--out", str(tmp_path))
    assert localise.main([source, "--data", "mnist", *size, *where], "localise") == 0
    shown = capsys.readouterr().out
    assert (
        "1 epoch of 64 training images, 30 test images" in shown
        and "IoU, TD - it" in shown
        and "mean taken away" in shown
    )
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "localise_precision_recall.png",
        "localise_iou.png",
    }


def test_localisation_refuses_colour(
    machine: Machine, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = localise.main(["lenet_fc", "--data", f"photo:28:{photo}", "--out", str(tmp_path)], "localise")
    assert status == 2
    assert "grey images" in capsys.readouterr().err
