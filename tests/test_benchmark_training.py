"""Trained networks: the recipe's steps against a loop by hand, resuming, sharing, DDP."""

from __future__ import annotations

import copy
import errno
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from td_compiler import ConversionError
from td_compiler.benchmarks.data import images
from td_compiler.benchmarks.data.datasets import load, opened
from td_compiler.benchmarks.experiments.accuracy import Accuracy
from td_compiler.benchmarks.lab.jobs import JobsFailed, Results, run_jobs
from td_compiler.benchmarks.lab.machine import Machine, fastest_precision
from td_compiler.benchmarks.lab.memory import CudaPeak
from td_compiler.benchmarks.training import fitting
from td_compiler.benchmarks.training.batches import augmented, seed_of, shuffled, split
from td_compiler.benchmarks.training.fitting import one_cycle
from td_compiler.benchmarks.training.networks import NetworkSpec
from td_compiler.benchmarks.training.norms import fresh_statistics
from td_compiler.benchmarks.training.recipes import PROFILES, Profile, RecipeError
from td_compiler.benchmarks.training.training import Training, evaluate, planned, trained, untrained
from tests.support.benchmark_data import NETWORKS, RECIPE, machine, write_folder, write_mnist

SHORT = Profile("short", epochs=1, train_images=160, batch_size=32)


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    (tmp_path / "nets.py").write_text(NETWORKS)
    return machine(tmp_path / "out", write_mnist(tmp_path))


def plan(here: Machine, name: str = "Net", **more: Any) -> Training:
    return Training(NetworkSpec(f"{here.data_root / 'nets.py'}:{name}", **more), "mnist", RECIPE)


def test_training_equals_a_loop_by_hand(here: Machine) -> None:
    """The recipe step by step in float64 with torch alone: batches, rates, momentum, decay, held-out images."""
    recipe = replace(RECIPE, epochs=5, weight_decay=0.01, normalise="pixel-mean", milestones=(0.5, 0.8))
    found = trained(replace(plan(here), recipe=recipe), here)

    torch.manual_seed(seed_of(0))
    network = plan(here).network.build((1, 28, 28), 10).double()
    data = load("mnist", here, train=True)
    images = data.images.double() / 255
    images = images - images.mean(0)
    kept, held_out = split(320, 0.1, run=0)
    speed = {parameter: torch.zeros_like(parameter) for parameter in network.parameters()}
    losses = []
    for epoch in range(5):
        batches = shuffled(kept, 32, 0, epoch)
        assert len(batches) == 9
        total = 0.0
        for step, batch in enumerate(batches, start=9 * epoch):
            rate = 0.05 * (0.1 if step >= round(0.5 * 45) else 1) * (0.1 if step >= round(0.8 * 45) else 1)
            loss = nn.functional.cross_entropy(network(images[batch]), data.labels[batch])
            network.zero_grad()
            loss.backward()
            total += loss.item()
            with torch.no_grad():
                for parameter, velocity in speed.items():
                    assert parameter.grad is not None
                    gradient = parameter.grad + (0.01 * parameter if parameter.ndim > 1 else 0)
                    velocity.mul_(0.9).add_(gradient)
                    parameter.sub_(rate * (gradient + 0.9 * velocity))
        losses.append(total / 9)
    with torch.no_grad():
        held_out_loss = nn.functional.cross_entropy(network(images[held_out]), data.labels[held_out]).item()

    assert [epoch["loss"] for epoch in found.history] == pytest.approx(losses, rel=1e-4)
    assert found.history[-1]["held_out_loss"] == pytest.approx(held_out_loss, rel=1e-3)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found.network.net.get_parameter(name).double(), parameter, rtol=1e-3, atol=1e-4)


def test_what_comes_out_takes_plain_images_and_scores_as_counted_by_hand(here: Machine) -> None:
    training = replace(plan(here, "Normed", arrangement="mirror"), recipe=replace(RECIPE, normalise="channels"))
    found = trained(training, here)
    data = load("mnist", here, train=False)
    with torch.no_grad():
        right = (found.network(data.images.float() / 255).argmax(1) == data.labels).float().mean().item()
    assert not found.network.training
    assert found.accuracy == pytest.approx(right)
    assert (found.input_size, found.classes, len(found.history)) == ((1, 28, 28), 10, 2)
    pixels = load("mnist", here, train=True).images.double() / 255
    assert float(found.network.normalise.mean) == pytest.approx(pixels.mean().item(), rel=1e-5)
    assert float(found.network.normalise.deviation) == pytest.approx(pixels.std(correction=0).item(), rel=1e-5)
    assert hasattr(found.network.net, "forward_pyramid")


class Stop(Exception):
    pass


def test_a_training_cut_off_goes_on_to_the_same_bits(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, augmentation, momentum, schedule and the norms' statistics all have to be as they were."""
    recipe = replace(RECIPE, epochs=4, augment="shift-flip", normalise="pixel-mean")
    training = replace(plan(here, "Normed", arrangement="uniform"), recipe=recipe)
    whole = trained(training, replace(here, out=here.out / "whole"))

    step = fitting._Module.training_step
    calls = 0

    def cut_off(self: Any, batch: Any, index: int) -> Any:
        nonlocal calls
        calls += 1
        if calls in (15, 30):
            raise Stop
        return step(self, batch, index)

    monkeypatch.setattr(fitting._Module, "training_step", cut_off)
    for _ in range(2):
        with pytest.raises(Stop):
            trained(training, here)
    resumed = trained(training, here)
    assert calls < 15 + 2 * 9 + 4 * 9, "it did not begin anew"
    for name, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name
    timeless = [[{**epoch, "seconds": 0} for epoch in each.history] for each in (whole, resumed)]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 4


def test_a_network_is_trained_once(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(plan(here), here)
    monkeypatch.setattr(fitting, "fit", None)
    again = trained(replace(plan(here), test_images=50), here)
    assert all(map(torch.equal, first.network.state_dict().values(), again.network.state_dict().values()))
    assert again.history == first.history
    for other in (replace(plan(here), run=1), replace(plan(here), train_images=100), plan(here, "Normed")):
        assert other.folder(here) != plan(here).folder(here)


def test_networks_are_made_for_the_images_and_classes() -> None:
    with pytest.raises(ConversionError, match="arrangement='mirrored' is not one of bu, mirror"):
        NetworkSpec("lenet_fc", "mirrored")
    with pytest.raises(ConversionError, match=r"torchvision:squeezenet1_1 does not take images of \(1, 28, 28\)"):
        NetworkSpec("torchvision:squeezenet1_1").build((1, 28, 28), 10)
    assert NetworkSpec("timm:resnet10t").build((1, 32, 32), 7).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_costs_are_the_published_parameters() -> None:
    """SPEC 4, LeNetFC; MACs of the BU network counted by hand: kernel area x widths x map size, layer by layer."""
    counts = {
        way: NetworkSpec("lenet_fc", way).costs((1, 28, 28), 10).parameters for way in ("bu", "mirror", "uniform")
    }
    assert counts == {"bu": 7_670, "mirror": 14_452, "uniform": 23_486}
    macs = 25 * 1 * 6 * 28**2 + 25 * 6 * 16 * 14**2 + 9 * 16 * 32 * 7**2 + 32 * 10 * 7**2
    assert NetworkSpec("lenet_fc").costs((1, 28, 28), 10).macs == macs
    assert NetworkSpec("lenet_fc", "mirror", (("head_width", 32),)).label == "mirror, head_width=32"


def test_two_processes_train_as_one(here: Machine) -> None:
    """DDP on the CPU, batches of 32 in halves of 16: the same sums in another order, so equal to float32's rounding."""
    training = replace(plan(here), recipe=replace(RECIPE, epochs=3, batch_size=32))
    alone = trained(training, replace(here, out=here.out / "alone"))
    together = trained(training, replace(here, out=here.out / "together", devices=2))
    for name in ("loss", "held_out_loss", "held_out_score"):
        curves = [[epoch[name] for epoch in each.history] for each in (alone, together)]
        assert curves[1] == pytest.approx(curves[0], rel=1e-4), name
    assert together.accuracy == pytest.approx(alone.accuracy, abs=0.011)
    with pytest.raises(RecipeError, match="Batches of 33 images cannot be divided among 2"):
        trained(replace(training, recipe=replace(RECIPE, batch_size=33)), replace(here, devices=2))


def test_a_folder_of_images_trains_from_its_files(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(here.data_root / "set", side=40, each=12)
    network = NetworkSpec(f"{here.data_root / 'nets.py'}:Net")
    recipe = replace(RECIPE, batch_size=4, epochs=3, augment="crop-flip-colour", normalise="channels")
    training = Training(network, f"folder:{folder}@32", recipe)
    in_memory = trained(training, replace(here, out=here.out / "memory"))
    opened.cache_clear()
    monkeypatch.setattr(images, "_MEMORY_LIMIT", 0)
    streamed = trained(training, replace(here, out=here.out / "streamed"))
    assert [epoch["loss"] for epoch in streamed.history] == pytest.approx(
        [e["loss"] for e in in_memory.history], rel=1e-5
    )
    assert in_memory.input_size == (3, 32, 32)


def test_fresh_statistics_are_those_of_torch_and_leave_frozen_norms_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.01), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    batches = [torch.randn(4, 1, 8, 8) for _ in range(5)]
    reference = copy.deepcopy(network)
    torch.optim.swa_utils.update_bn(batches, reference)
    found = fresh_statistics(network, batches)
    assert found.keys() == {f"{norm}.{name}" for norm in "13" for name, _ in nn.BatchNorm2d(2).named_buffers()}
    for name, value in found.items():
        torch.testing.assert_close(value, reference.state_dict()[name])
    assert network[1].momentum == 0.01

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[1].eval()
            return self

    frozen = Frozen(*reference)
    before = frozen.state_dict()["1.running_mean"].clone()
    assert fresh_statistics(frozen, [2 * batch for batch in batches]).keys() == {k for k in found if k[0] == "3"}
    assert torch.equal(frozen.state_dict()["1.running_mean"], before)


def test_a_short_training_takes_its_statistics_anew(here: Machine) -> None:
    """The norms' statistics are those of the training images, however few steps there were."""
    training = replace(plan(here, "Normed"), recipe=replace(RECIPE, epochs=1, fresh_statistics=True))
    network: Any = trained(training, here).network.net
    kept, _ = split(320, 0.1, run=0)
    images = load("mnist", here, train=True).images[kept].float() / 255
    with torch.no_grad():
        means = torch.stack([network[0](batch).mean((0, 2, 3)) for batch in images.split(32)]).mean(0)
    torch.testing.assert_close(network[1].running_mean, means, rtol=1e-4, atol=1e-5)


def test_evaluate_counts(here: Machine) -> None:
    data = load("mnist", here, train=False)

    class Guess(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 10).float()

    assert evaluate(Guess(), data) == pytest.approx((data.labels == 0).double().mean().item())


def test_a_loss_that_is_no_number_ends_the_job_with_an_error(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    wild = replace(plan(here), recipe=replace(RECIPE, learning_rate=1e20))
    with pytest.raises(JobsFailed, match="1 of 1 jobs failed"):
        run_jobs([Accuracy(wild)], here)
    assert "no longer a finite number; lower the learning rate" in capsys.readouterr().err
    assert not Results(here.results).read()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "halved": halve,
    "empty": lambda path: path.write_bytes(b""),
    "other": lambda path: path.write_text("[]"),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["weights.safetensors", "training.json"])
def test_damaged_weights_are_named_and_trained_again(
    here: Machine, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained(plan(here), here)
    DAMAGES[damage](plan(here).folder(here) / file)
    again = trained(plan(here), here)
    said = capsys.readouterr().err
    assert ("is damaged" in said and str(plan(here).folder(here)) in said) or (file, damage) == (
        "training.json",
        "gone",
    )
    assert all(map(torch.equal, first.network.state_dict().values(), again.network.state_dict().values()))


@pytest.mark.parametrize("damaged", [("last.ckpt",), ("last.ckpt", "before.ckpt")], ids=["last", "both"])
@pytest.mark.parametrize("damage", ["flipped", "halved", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_epoch_before_or_the_start_is_used(
    here: Machine,
    damage: str,
    damaged: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = replace(plan(here, "Normed"), recipe=replace(RECIPE, epochs=4))
    whole = trained(training, replace(here, out=here.out / "whole"))
    start, epochs = fitting._Module.on_train_epoch_start, []

    def stopped(self: Any) -> None:
        epochs.append(self.current_epoch)
        if len(epochs) == 4:
            raise Stop
        start(self)

    monkeypatch.setattr(fitting._Module, "on_train_epoch_start", stopped)
    with pytest.raises(Stop):
        trained(training, here)
    folder = training.folder(here)
    assert {path.name for path in folder.glob("*.ckpt")} == {"last.ckpt", "before.ckpt"}
    for name in damaged:
        DAMAGES[damage](folder / name)
    resumed = trained(training, here)
    assert epochs[4:] == list(range(3 - len(damaged) if len(damaged) == 1 else 0, 4)), "from what was still whole"
    assert damage == "gone" or str(folder / damaged[0]) in capsys.readouterr().err
    assert all(map(torch.equal, whole.network.state_dict().values(), resumed.network.state_dict().values()))
    assert not list(folder.glob("*.ckpt"))


def test_checkpoints_are_written_in_their_own_folder_and_a_full_disk_leaves_the_last_one(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = replace(plan(here), recipe=replace(RECIPE, epochs=3))
    folder, write, count = training.folder(here), fitting.write_synced, 0

    def full(contents: dict[Path, bytes]) -> None:
        nonlocal count
        assert {path.parent for path in contents} == {folder}
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(contents)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "write_synced", full)
        patch.setattr(tempfile, "TemporaryDirectory", None)  # not through a folder of another file system
        patch.setattr(tempfile, "NamedTemporaryFile", None)
        with pytest.raises(OSError, match="No space left"):
            trained(training, here)
    assert {path.name for path in folder.glob("*.ckpt")} == {"last.ckpt", "before.ckpt"}
    assert len(trained(training, here).history) == 3


def test_the_first_step_in_a_process_is_not_timed(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by 1 second with every step, and by 100 with the first one."""
    step, clock = fitting._Module.training_step, [0.0]

    def ticking(self: Any, batch: Any, index: int) -> Any:
        clock[0] += 1 if self.warm else 100
        return step(self, batch, index)

    monkeypatch.setattr(fitting._Module, "training_step", ticking)
    monkeypatch.setattr(fitting._Module, "_now", lambda self: clock[0])
    found = trained(plan(here), here)
    assert [epoch["seconds"] for epoch in found.history] == [9, 9], "nine batches each"
    assert found.seconds_per_epoch == 9


def test_the_peak_of_a_gpu_starts_anew_for_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU in words: a network that took 900 bytes before, with 100 of them still there, is not this one's peak."""
    state = {"now": 100, "peak": 900}
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: state.update(peak=state["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state["peak"])
    peak = CudaPeak(torch.device("cuda"))
    assert peak.growth == 0
    state.update(peak=350, now=200)
    assert peak.growth == 250


def test_one_cycle_rises_over_a_fifth_of_the_steps_and_falls_to_nothing() -> None:
    rates = [one_cycle(50)(step) for step in range(51)]
    assert rates == pytest.approx(np.interp(range(51), [-1, 9, 10, 50], [0, 1, 1, 0]))
    assert [one_cycle(steps)(0) for steps in (1, 2, 5)] == [1, 1, 1]


def test_a_fast_training_equals_a_loop_by_hand_and_goes_on_after_a_stop(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate at every step, by torch's own SGD; the norms' momentum; a training that was cut off in between."""
    spec = plan(here, "Normed").network
    training = planned(PROFILES["paper"], spec, "mnist", 0, settings=["fast", "batch_size=32", "epochs=3"])
    assert (training.recipe.learning_rate, training.recipe.label) == (0.05, "fast")
    assert training.name == f"mnist {spec.name} BU fast, run 0"
    save, saves = fitting._Module.on_save_checkpoint, itertools.count(1)

    def stopped(self: Any, checkpoint: dict[str, Any]) -> None:
        save(self, checkpoint)
        if next(saves) == 2:
            raise Stop

    monkeypatch.setattr(fitting._Module, "on_save_checkpoint", stopped)
    with pytest.raises(Stop):
        trained(training, here)
    found = trained(training, here)

    torch.manual_seed(seed_of(0))
    network: Any = spec.build((1, 28, 28), 10)
    for norm in (network[1], network[6]):
        norm.momentum = 0.1
    images, labels = (getattr(load("mnist", here, train=True), name) for name in ("images", "labels"))
    kept, _ = split(320, 0.1, run=0)
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, nesterov=True)
    for epoch in range(3):
        torch.manual_seed(seed_of(0, epoch, purpose=3))
        for step, batch in enumerate(shuffled(kept, 32, 0, epoch), start=9 * epoch):
            optimizer.param_groups[0]["lr"] = 0.05 * float(np.interp(step, [-1, 4, 5, 27], [0, 1, 1, 0]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch].float() / 255), labels[batch]).backward()
            optimizer.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found.network.net.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_precision_auto_is_bf16_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, expected in ((True, "bf16-mixed"), (False, "32-true")):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda has_it=has_it: has_it)
        assert fastest_precision(torch.device("cpu")) == expected


def test_a_teacher_counts_half_by_hand(here: Machine) -> None:
    """The loss of Hinton et al. 2015 written out; the teacher is the very network that the BU job trains."""
    mirror = plan(here, "Normed", arrangement="mirror").network
    settings = ["augment=shift-flip", "milestones=[]"]
    training = planned(SHORT, mirror, "mnist", 1, settings=settings, teacher="bu")
    bottom_up = planned(SHORT, plan(here, "Normed").network, "mnist", 1, settings=settings)
    assert training.name == f"mnist {mirror.name} mirror, teacher=bu, run 1"
    found = trained(training, here)
    assert bottom_up.folder(here).joinpath("weights.safetensors").exists()
    teacher = trained(bottom_up, here).network
    assert training.folder(here) != replace(training, teacher="", helper=None).folder(here)
    assert planned(SHORT, NetworkSpec(mirror.name), "mnist", 1, teacher="bu", start="bu").helper is None

    network: Any = untrained(training, here)
    data = load("mnist", here, train=True, limit=training.train_images)
    kept, _ = split(len(data), 0.1, run=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    losses = []
    torch.manual_seed(seed_of(1, 0, purpose=3))
    for batch in shuffled(kept, 32, 1, 0):
        images = augmented(data.images[batch].float() / 255, "shift-flip", None)
        scores, taught = network(images), (teacher(images) / 4).softmax(1)
        divergence = (taught * (taught.log() - (scores / 4).softmax(1).log())).sum(1).mean()
        loss = nn.functional.cross_entropy(scores, data.labels[batch]) / 2 + 16 * divergence / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found.history[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert not any("teacher" in name for name in found.network.state_dict())


def test_a_start_from_bottom_up_weights_keeps_what_fits(here: Machine) -> None:
    training = planned(SHORT, plan(here, arrangement="mirror").network, "mnist", 0, start="bu")
    start, fresh = untrained(training, here), untrained(replace(training, start="", helper=None), here)
    source = trained(planned(SHORT, plan(here).network, "mnist", 0), here).network.state_dict()
    kept = [name for name, value in start.state_dict().items() if name in source and value.shape == source[name].shape]
    assert len(kept) >= 3 and all(torch.equal(start.state_dict()[name], source[name].cpu()) for name in kept)
    assert start.state_dict().keys() == fresh.state_dict().keys()
    assert not torch.equal(start.state_dict()[kept[0]], fresh.state_dict()[kept[0]])
    assert start.training and len(trained(training, here).history) == 1
    with pytest.raises(RecipeError, match="'mirror' is no teacher"):
        planned(SHORT, plan(here, arrangement="mirror").network, "mnist", 0, teacher="mirror")
