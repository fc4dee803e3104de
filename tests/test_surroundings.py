"""What surrounds a call stays out of it, and as it was: modes, defaults, random numbers, threads; and errors."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from td_compiler import ConversionError, TopDownNet, from_pretrained, fuse, leaf, reverse, save_pretrained, verify
from td_compiler import passes as pipeline
from td_compiler.cli import app as cli
from td_compiler.errors import Breakdown
from td_compiler.graph.states import TopDown
from td_compiler.network.refine import Refined
from td_compiler.passes.insert_merges import InsertMerges
from td_compiler.surroundings import resting_collector


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.skip = nn.Conv2d(inputs, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.skip(x))


class Net(nn.Module):
    """A stem and three blocks: scales (1, 2, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2), Block(6, 8, 2))
        self.drop, self.fc = nn.Dropout(0.25), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.blocks(self.stem(x)).mean((2, 3))))


SIZE = (3, 16, 16)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"filters": "uniform", "upsample": "transposed", "merge": "concat"},
    {"filters": "reversed", "upsample": "bilinear", "downsample": "blur", "init": "fresh"},
    {"task": "segmentation", "num_classes": 3, "downsample": "laplacian", "fast": False},
)


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _all(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "all": lambda: _all(torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16)),
}


def surroundings() -> tuple[Any, ...]:
    """What a caller may have set, and would notice if it were another afterwards."""
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        *(torch.get_default_device(), torch.get_default_dtype(), torch.is_inference_mode_enabled()),
        *(torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled()),
        *(list(warnings.filters), torch.get_num_threads(), nn.Module.__call__, nn.Module.__getattr__),
        *(gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
    )


def same_network(td: nn.Module, expected: nn.Module) -> None:
    one, other = td.state_dict(), expected.state_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype is other[name].dtype and value.device == other[name].device, name
        assert torch.equal(value, other[name]), name
        assert not value.is_inference()
    for name, parameter in td.named_parameters():
        assert parameter.requires_grad, name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ambient", AMBIENT)
def test_the_same_network_comes_out(model: Net, ambient: str, options: dict[str, Any]) -> None:
    expected = reverse(model, input_size=SIZE, **options)
    with AMBIENT[ambient]():
        before = surroundings()
        td = reverse(model, input_size=SIZE, **options)
        assert surroundings() == before
    same_network(td, expected)
    images = torch.randn(2, *SIZE)
    td.train()(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in td.parameters())
    assert torch.equal(td.eval()(images), expected.train()(images) * 0 + td(images))


@pytest.mark.parametrize("ambient", AMBIENT)
def test_other_doors_leave_all_as_it_was(model: Net, ambient: str, tmp_path: Path) -> None:
    td = reverse(model, input_size=SIZE)
    with AMBIENT[ambient]():
        before = surroundings()
        checked = verify(model, input_size=SIZE)
        fused = fuse(td)
        Refined(td)
        save_pretrained(td, tmp_path / "net")
        again = from_pretrained(tmp_path / "net", trust_code=True)
        assert surroundings() == before
    assert checked.passed and not any(check.skipped for check in checked.checks), str(checked)
    assert not any(tensor.is_inference() or tensor.is_meta for tensor in fused.state_dict().values())
    same_network(again, td)


def test_seeds_decide_and_do_not_move(model: Net) -> None:
    """New weights follow the caller's seed, and his next numbers are those that he would have got without."""

    def draw(seed: int) -> tuple[TopDownNet, torch.Tensor]:
        torch.manual_seed(seed)
        return reverse(model, input_size=SIZE, init="fresh"), torch.randn(3)

    (one, numbers), (other, _), (again, _) = draw(1), draw(2), draw(1)
    same_network(one, again)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    torch.manual_seed(1)
    assert torch.equal(numbers, torch.randn(3))


class Restless(Net):
    """Draws in every forward, from three generators."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        random.random(), np.random.rand(), torch.rand(1), F.dropout(torch.ones(3)), torch.randn_like(torch.ones(3))
        return super().forward(x)


def test_a_network_that_draws_moves_no_generator() -> None:
    model = Restless()
    before = surroundings()
    with contextlib.suppress(ConversionError):
        reverse(model, input_size=SIZE)
    assert surroundings() == before


def tiny() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2)),
    )


def test_several_convert_while_others_infer() -> None:
    """Four threads convert, two run networks, 50 rounds each; nothing that they share is touched."""
    model, served, images = tiny(), Net().eval(), torch.randn(2, *SIZE)
    with torch.no_grad():
        scores = served(images)
    expected = reverse(model, input_size=SIZE)
    call, state = nn.Module.__call__, torch.get_rng_state()
    wrong: list[str] = []
    done = threading.Event()

    def convert(options: dict[str, Any]) -> None:
        try:
            for _ in range(50):
                td = reverse(model, input_size=SIZE, **options)
                if not options:
                    same_network(td, expected)
        except BaseException as error:
            wrong.append(f"conversion: {type(error).__name__}: {error}")

    def infer() -> None:
        try:
            while not done.is_set():
                with torch.no_grad():
                    assert torch.equal(served(images), scores)
                time.sleep(0.002)
        except BaseException as error:
            wrong.append(f"inference: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=convert, args=(options,)) for options in ({}, {}, *OPTIONS[1:3])]
    servers = [threading.Thread(target=infer) for _ in range(2)]
    for thread in (*threads, *servers):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in servers:
        thread.join()
    assert not wrong
    assert gc.isenabled()
    assert nn.Module.__call__ is call
    assert torch.equal(torch.get_rng_state(), state)


def test_the_collector_runs_again_behind_the_last_of_several() -> None:
    one, other = resting_collector(), resting_collector()
    with one:
        other.__enter__()
        assert not gc.isenabled()
    assert not gc.isenabled(), "the other still converts"
    other.__exit__(None, None, None)
    assert gc.isenabled()


@pytest.mark.parametrize("runs", [True, False])
def test_the_collector_is_left_as_it_was(runs: bool) -> None:
    seen: list[bool] = []

    class Looks(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(gc.isenabled())
            return super().forward(x)

    try:
        (gc.enable if runs else gc.disable)()
        reverse(Looks(), input_size=SIZE)
        assert gc.isenabled() is runs
        with pytest.raises(ConversionError):
            reverse(Raises(), input_size=SIZE)
        assert gc.isenabled() is runs
    finally:
        gc.enable()
    assert seen and not any(seen)


class Exits(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sys.exit(0)


class Raises(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)) @ {}["lost"])


class Interrupted(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "what", "size"), [(Exits, "SystemExit", SIZE), (Exits, "SystemExit", None), (Raises, "KeyError", SIZE)]
)
def test_what_a_network_raises_is_a_refusal_with_its_line(kind: type[Net], what: str, size: Any) -> None:
    with pytest.raises(ConversionError, match=what) as raised:
        reverse(kind(), input_size=size)
    assert "test_surroundings.py:" in str(raised.value)
    assert not isinstance(raised.value, Breakdown)
    with pytest.raises(KeyboardInterrupt):
        reverse(Interrupted(), input_size=size)


@pytest.mark.parametrize("error", [KeyError("lost\nsecond line"), AssertionError(), SystemExit(0), StopIteration()])
def test_a_breakdown_says_where_and_keeps_its_cause(
    model: Net, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def broken(self: InsertMerges, top_down: TopDown) -> None:
        node = next(iter(top_down.stages[0].graph.find_nodes(op="call_module")))
        assert node is not None
        raise error

    monkeypatch.setattr(InsertMerges, "apply", broken)
    assert any(isinstance(step, InsertMerges) for step in pipeline.TURN)
    with pytest.raises(ConversionError) as raised:
        reverse(model, input_size=SIZE)
    assert raised.value.__cause__ is error
    message = str(raised.value)
    assert all(word in message for word in ("InsertMerges", type(error).__name__, "test_surroundings.py")), message
    assert "\n" not in message


SOURCES = {
    "exits": "import sys\nimport torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
    "        super().__init__(); self.c = nn.Conv2d(3, 4, 3, 2, 1)\n    def forward(self, x): sys.exit(0)\n",
    "names": "import torch\nfrom torch import nn\nclass Größe(nn.Module):\n    '''Größer.'''\n    def __init__(self):\n"
    "        super().__init__(); self.a, self.b = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)\n"
    "        self.fc = nn.Linear(4, 2)\n    def forward(self, x): return self.fc(self.b(self.a(x)).mean((2, 3)))\n",
}


@pytest.mark.parametrize("command", ["convert", "inspect", "verify"])
def test_a_network_that_exits_ends_no_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCES["exits"])
    done = CliRunner().invoke(cli.app, [command, "net.py"])
    assert done.exit_code == 1
    assert "SystemExit" in done.stderr and "net.py:7" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    debug = CliRunner().invoke(cli.app, [command, "net.py", "--debug"])
    assert "Traceback" in debug.stderr and "SystemExit: 0" in debug.stderr


@pytest.mark.parametrize("command", ["verify", "inspect", "convert"])
def test_commands_on_a_terminal_without_signs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCES["names"], encoding="utf-8")
    done = CliRunner(charset="ascii").invoke(
        cli.app, [command, "net.py", *(["-o", "-"] if command == "convert" else [])]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    if command == "verify":
        assert sum(line.startswith("ok ") for line in done.stdout_bytes.decode("ascii").splitlines()) == 15
    if command == "convert":
        assert "class GrößeTD(nn.Module):" in done.stdout_bytes.decode("utf-8")


def test_sizes_beyond_all_measure_are_one_short_sentence() -> None:
    done = CliRunner().invoke(cli.app, ["inspect", "zoo:lenet_fc", "--input-size", f"1,{'9' * 40},28"])
    assert done.exit_code == 2
    assert len(done.stderr) < 200
    with pytest.raises(ConversionError, match="at most"):
        reverse(Net(), input_size=(3, 2**40, 2**40))


def test_replaced_files_keep_their_permissions_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "net.py").write_text("# old\n")
    (real / "net.py").chmod(0o640)
    Path("net.py").symlink_to(real / "net.py")
    done = CliRunner().invoke(cli.app, ["convert", "zoo:lenet_fc", "-o", "net.py", "--force"])
    assert done.exit_code == 0, done.output
    assert Path("net.py").is_symlink()
    assert "class" in (real / "net.py").read_text()
    assert (real / "net.py").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("trust", ["no", "yes", 1, None, 0])
def test_only_true_trusts_code(model: Net, tmp_path: Path, trust: Any) -> None:
    save_pretrained(reverse(model, input_size=SIZE), tmp_path / "net")
    with pytest.raises(ConversionError, match="trust_code"):
        from_pretrained(tmp_path / "net", trust_code=trust)


def test_levels_are_checked(model: Net) -> None:
    td = reverse(model, input_size=SIZE).eval()
    images = torch.randn(2, 3, 19, 16)
    levels = td.pyramid(images)
    assert torch.equal(td.forward_pyramid(levels), td(images))
    for wrong in (
        levels[::-1],
        levels[:2],
        [images] * 3,
        [*levels[:2], levels[2][:, :1]],
        [*levels[:2], levels[2][:1]],
    ):
        with pytest.raises(ValueError, match="scale"):
            td.forward_pyramid(wrong)
        with pytest.raises(ValueError, match="scale"):
            td.stage_maps(wrong)


@leaf
class Twice(nn.Module):
    """Looks at values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class WithLeaf(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem.append(Twice())


@pytest.mark.parametrize("filters", ["mirror", "uniform"])
def test_a_leaf_is_not_run_on_meta_and_can_be_emitted(filters: str) -> None:
    result = verify(WithLeaf(), input_size=SIZE, filters=filters)
    assert result.passed and not any(check.skipped for check in result.checks), str(result)


@pytest.mark.parametrize("wrap", [lambda td: td, lambda td: nn.Sequential(nn.Identity(), td), Refined])
def test_a_top_down_network_is_refused(model: Net, wrap: Callable[[TopDownNet], nn.Module]) -> None:
    td = reverse(model, input_size=SIZE)
    for door in (reverse, verify):
        with pytest.raises(ConversionError, match="top-down network already"):
            door(wrap(td), input_size=SIZE)


def test_a_top_down_network_from_a_folder_is_refused(model: Net, tmp_path: Path) -> None:
    save_pretrained(reverse(model, input_size=SIZE), tmp_path / "net")
    again = from_pretrained(tmp_path / "net", trust_code=True)
    with pytest.raises(ConversionError, match="top-down network already"):
        reverse(again, input_size=SIZE)
    with pytest.raises(ConversionError, match="not a top-down network that reverse made"):
        verify(model, again)


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem[1], self.fc = nn.LazyBatchNorm2d(), nn.LazyLinear(5)


@pytest.mark.parametrize("door", [reverse, verify])
def test_lazy_layers_are_refused_until_they_have_run(door: Callable[..., Any]) -> None:
    model = Lazy()
    with pytest.raises(ConversionError, match=r"stem\.1.*run the network once"):
        door(model, input_size=SIZE)
    model(torch.randn(2, *SIZE))
    door(model, input_size=SIZE)
