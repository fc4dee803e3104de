"""The frequency experiment: filters and toy set against other libraries, growing against plain networks, end to end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from td_compiler import reverse, zoo
from td_compiler.benchmarks.data.cosines import FREQUENCIES, cosines
from td_compiler.benchmarks.data.datasets import DataError, fingerprint, load, title
from td_compiler.benchmarks.data.filters import blur, high_pass, low_pass
from td_compiler.benchmarks.experiments import frequency
from td_compiler.benchmarks.experiments.frequency.growing import GrowingNet
from td_compiler.benchmarks.lab.journal import Results
from tests.support.benchmark_data import NETWORKS, machine, write_mnist


@pytest.mark.parametrize(("sigma", "width"), [(0.6, 5), (1.2, 9), (2.4, 17)])
def test_blurs_against_torchvision(sigma: float, width: int) -> None:
    images = torch.rand(2, 3, 20, 23, dtype=torch.float64)
    torch.testing.assert_close(blur(images, sigma), gaussian_blur(images, [width, width], [sigma, sigma]))
    assert torch.equal(blur(images, 0), images)


@pytest.mark.parametrize("size", [(28, 28), (9, 14)])
def test_fourier_masks_against_numpy(size: tuple[int, int]) -> None:
    images = torch.rand(3, 2, *size, dtype=torch.float64)
    height, width = size
    v, u = np.mgrid[:height, :width]
    v, u = np.minimum(v, height - v), np.minimum(u, width - u)
    kept = np.fft.fft2(images.numpy()) * (u**2 + v**2 <= 9)
    expected = torch.from_numpy(np.fft.ifft2(kept).real)
    torch.testing.assert_close(low_pass(images, 3), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(low_pass(images, 3) + high_pass(images, 3), images)
    assert low_pass(images, 0).std((2, 3)).max() < 1e-12, "radius 0 keeps the mean alone"
    assert expected.std() > 0.01


def test_cosines_have_the_frequency_of_their_class() -> None:
    train, test = cosines(train=True), cosines(train=False)
    assert (len(train), len(test)) == (4000, 1000)
    labels = torch.cat([train.labels, test.labels])
    assert Counter(labels.tolist()) == dict.fromkeys(range(5), 1000)
    known = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in known for image in test.images), "no test image is a training image"
    assert test.labels.bincount().tolist() == [200] * 5
    images = torch.cat([train.images, test.images]).double()[:, 0] / 255
    contrast = images.amax((1, 2)) - images.amin((1, 2))
    assert contrast[labels == 0].max() == 0
    assert contrast[labels == 1].max() > 0.9
    for label in (2, 3, 4):  # a single cycle has no peak of its own beside the mean
        some = images[(labels == label) & (contrast > 0.5)][:60]
        assert len(some) == 60
        assert (_peak(some) - FREQUENCIES[label]).abs().max() < 0.5


def _peak(images: torch.Tensor) -> torch.Tensor:
    """The frequency, in cycles a side, at which the windowed spectrum of images (N, 32, 32) is highest."""
    window = torch.hann_window(32, periodic=False, dtype=torch.float64)
    centred = (images - images.mean((1, 2), keepdim=True)) * window * window[:, None]
    spectrum = torch.fft.fft2(centred, s=(128, 128)).abs().flatten(1)
    v, u = np.meshgrid(*(np.fft.fftfreq(128, 1 / 128) * 32 / 128,) * 2, indexing="ij")
    return torch.from_numpy(np.hypot(u, v)).flatten()[spectrum.argmax(1)]


def test_filtered_data_sets(tmp_path: Path) -> None:
    here = machine(tmp_path / "out", write_mnist(tmp_path, 20, 10))
    plain = load("mnist", here, train=True).images.double() / 255
    low, high = (load(f"{kind}:3:mnist", here, train=True) for kind in ("lowpass", "highpass"))
    torch.testing.assert_close(low.images.double() + high.images.double(), plain, atol=1e-3, rtol=0)
    assert high.images.min() < 0
    blurred = load("blur:1.2:mnist", here, train=True).images.double()
    torch.testing.assert_close(blurred, gaussian_blur(plain, [9, 9], [1.2, 1.2]), atol=1e-3, rtol=0)
    assert title("blur:1.2:mnist") == "MNIST, blurred (sigma 1.2)"
    assert (
        len({fingerprint(name, here) for name in ("mnist", "blur:1.2:mnist", "blur:2.4:mnist", "lowpass:3:mnist")}) == 4
    )
    for name in ("blur:wide:mnist", "lowpass:-1:mnist", "highpass:inf:mnist"):
        with pytest.raises(DataError, match="is no size of a filter"):
            load(name, here, train=True)


def grown(stages: int, *, ramp: int = 4, frozen: bool = False, seed: int = 0) -> GrowingNet:
    torch.manual_seed(seed)
    td = reverse(zoo.lenet_fc(), init="fresh")
    return GrowingNet(td, 10, stages=stages, ramp=ramp, frozen=frozen)


def test_a_grown_network_is_the_network() -> None:
    network = grown(3).eval()
    network.step.fill_(4)
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(network(images), network.td(images))
    assert len(network.heads) == 2
    with pytest.raises(ValueError, match="1 to 3"):
        grown(4)


@pytest.mark.parametrize("stages", [2, 3])
def test_staging_in_goes_from_the_smaller_network_to_the_new_one(stages: int) -> None:
    smaller, network = grown(stages - 1, ramp=1), grown(stages, seed=1)
    smaller.step.fill_(1)
    network.grow_from(smaller)
    images = torch.rand(5, 1, 28, 28)
    before = smaller.eval()(images)
    torch.testing.assert_close(network.eval()(images), before)
    network.step.fill_(4)
    after = network(images)
    assert (after - before).abs().max() > 1e-3
    network.step.fill_(1)
    torch.testing.assert_close(network(images), 0.75 * before + 0.25 * after)
    assert int(network.step) == 1, "evaluation takes no step"
    network.train()(images)
    assert int(network.step) == 2


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_trained_at_each_size(frozen: bool) -> None:
    network = grown(2, frozen=frozen).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(torch.rand(8, 1, 28, 28)), torch.arange(8)).backward()
        optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    newest = ("td.transition.2", "td.entry.2", "td.merge.2", "td.features.2", "heads.1")
    earlier = ("td.features.4", "heads.0")  # their running statistics included
    for part in newest:
        assert any(name.startswith(part) for name in changed), part
    for part in earlier:
        assert any(name.startswith(part) for name in changed) is not frozen, part
    assert not any(name.startswith(("td.entry.1", "td.merge.1", "td.features.0", "td.head")) for name in changed)


def test_frozen_stages_stay_in_evaluation_mode() -> None:
    for frozen in (False, True):
        td = grown(3, frozen=frozen).train().td
        assert td.get_submodule("merge.1.norm").training
        assert td.get_submodule("merge.2.norm").training is not frozen
        assert td.get_submodule("features.4.norm").training is not frozen


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_mnist(tmp_path, 64, 20)
    words = ["--data", "mnist", "--data-root", str(root), "--out", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--epochs", "1", "--runs", "1", "--train-images", "48", "--test-images", "16", "--no-progress"]
    words += ["--recipe", "batch_size=16", "--arrangement", "mirror", f"{tmp_path / 'nets.py'}:Net"]
    (tmp_path / "nets.py").write_text(NETWORKS)
    assert frequency.main(words, "frequency") == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    results = Results(tmp_path / "out" / "results.jsonl").read()
    parts = Counter(result.job["part"] for result in results.values())
    assert parts == {"blur": 4, "cosines": 4, "fourier": 3, "laplacian": 2, "growing": 3}
    for name in ("Blurs", "Single frequencies", "Fourier masks", "Laplacian pyramid", "Progressive growing"):
        assert f"{name}: " in shown
    assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 2

    for result in results.values():
        accuracies = result.figures["accuracy"]
        values = accuracies if isinstance(accuracies, list) else list(accuracies.values())
        assert all(0 <= value <= 1 and (16 * value) % 1 == 0 for value in values), "of 16 images"
        if result.job["part"] == "blur":
            assert list(accuracies) == ["mnist", "blur:0.6:mnist", "blur:1.2:mnist", "blur:2.4:mnist"]
    growing = [result for result in results.values() if "frozen" in result.job]
    assert [result.figures["epochs"] for result in growing] == [[1, 1]] * 2
    stored = [json.loads(path.read_text()) for path in (tmp_path / "out" / "checkpoints").glob("*/training.json")]
    sizes = Counter(each["training"]["variant"] for each in stored)
    assert sizes["grown to 1 of 2 stages"] == 1, "both ways of growing share the first stage"
    assert sizes["grown to 2 of 2 stages"] == sizes["grown to 2 of 2 stages, frozen"] == 1
    assert sizes[""] == 4 + 4 + 2 + 1, "what several parts need is trained once"

    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert frequency.main(words, "frequency") == 0
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_an_unknown_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--part", "blurs", "--data-root", str(tmp_path), "--out", str(tmp_path)]
    assert frequency.main(words, "frequency") != 0
    assert "There is no part 'blurs', only blur, cosines," in capsys.readouterr().err
