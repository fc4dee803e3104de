"""From a module to a graph by running it: what the graph computes is what the module computes, at any size."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler import ConversionError, leaf
from td_compiler.capture.capture import RefusedImages, capture
from td_compiler.capture.captured import Capture
from td_compiler.capture.copying import copy_module
from td_compiler.capture.evaluate import evaluate
from td_compiler.capture.numbers import Made, Size, explain
from td_compiler.capture.recording import Image
from td_compiler.graph.notes import facts

SIZE = (3, 32, 32)


class Net(nn.Module):
    """A convolution, what a test is about, a classifier of 8 features."""

    shift: torch.Tensor

    def __init__(self, middle: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.drop, self.relu = nn.Dropout(0.5), nn.ReLU(inplace=True)
        self.gain = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("shift", torch.rand(8))
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.middle(self, self.conv(x)).mean((2, 3)))
        return scores


def ran(captured: Capture, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a graph computes on real images, with the model's own layers."""
    root = copy_module(model)
    for path, module in captured.modules.items():
        if "in_training" in path:
            parent, _, name = path.rpartition(".")
            root.get_submodule(parent).add_module(name, module)
    values: dict[fx.Node, Any] = {}
    for name, constant in captured.constants.items():
        parent, _, last = name.rpartition(".")
        root.get_submodule(parent).register_buffer(last, constant)
    for node in captured.graph.nodes:
        values[node] = images if node.op == "placeholder" else evaluate(node, root, values.__getitem__)
    output: torch.Tensor = values[captured.graph.output_node()]
    return output


def halves(net: Net, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    one, two = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, dim=1)
    return torch.cat([two, one], 1)


def by_float(net: Net, x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=(int(x.shape[2] / 2), round(x.size(3) * 0.5)))


def scaled(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x * (x.shape[2] * x.shape[3]) ** -0.5


def alone(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x + net.drop(x)  # in evaluation dropout hands on its very input


def written(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 2:4] = 0
    y[:, :2] *= 3
    return y + x


def overwritten(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    z = net.relu(y)
    return y + z  # both are what ReLU left in y


def chained(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x.add_(1).clamp_(min=0).mul_(net.gain).sub_(net.shift.view(1, -1, 1, 1))


def constants(net: Net, x: torch.Tensor) -> torch.Tensor:
    kernel = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])).to(x.device)
    return F.conv2d(x, (kernel / kernel.sum()).repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])


def grid(net: Net, x: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype).view(1, 1, -1, 1)
    return x + rows.expand(x.shape[0], 1, -1, x.shape[3])


def reflected(net: Net, x: torch.Tensor) -> torch.Tensor:
    return 1 - 2 / (1 + x * x) ** 2 + -x


def listed(net: Net, x: torch.Tensor) -> torch.Tensor:
    maps = {"a": [x, x.relu()], "b": (None, x.sigmoid())}
    return sum(m for part in maps.values() for m in part if m is not None)  # type: ignore[return-value]


IDIOMS = [
    *(halves, by_float, scaled, alone, written, overwritten, chained, constants, grid, reflected, listed),
]


@pytest.mark.parametrize("middle", IDIOMS, ids=lambda middle: middle.__name__)
def test_a_graph_computes_what_the_module_computes(middle: Callable[..., torch.Tensor]) -> None:
    model = Net(middle).eval()
    captured = capture(model, SIZE)
    with torch.no_grad():
        for batch, height, width in ((2, 32, 32), (1, 32, 32), (5, 48, 36)):
            images = torch.randn(batch, 3, height, width)
            torch.testing.assert_close(ran(captured, model, images), model(images))


@pytest.mark.parametrize("middle", IDIOMS, ids=lambda middle: middle.__name__)
def test_nothing_works_in_place_in_a_graph(middle: Callable[..., torch.Tensor]) -> None:
    for node in capture(Net(middle), SIZE).graph.nodes:
        assert not (node.op == "call_method" and str(node.target).endswith("_")), node
        assert node.kwargs.get("inplace") is not True


def noisy(net: Net, x: torch.Tensor) -> torch.Tensor:
    if net.training:
        noise = torch.randn(x.shape[0], 1, 1, 1, device=x.device)
        x = x * (1 + noise)
    return x.relu()


def test_a_branch_of_training_runs_in_training_alone() -> None:
    model = Net(noisy)
    captured = capture(model, SIZE)
    steps = {path: module for path, module in captured.modules.items() if "in_training" in path}
    assert len(steps) == 1
    (step,) = steps.values()
    images = torch.randn(4, 3, 40, 32)
    x = model.conv(images)
    assert step.eval()(x) is x
    torch.manual_seed(3)
    wanted = x * (1 + torch.randn(4, 1, 1, 1))
    torch.manual_seed(3)
    torch.testing.assert_close(step.train()(x), wanted)


def test_a_mode_that_is_an_argument_stays_one() -> None:
    graph = capture(Net(lambda net, x: F.dropout(x, 0.5, net.training)), SIZE).graph
    (dropout,) = (node for node in graph.nodes if node.target is F.dropout)
    modes = [node for node in dropout.all_input_nodes if node.op == "get_attr"]
    assert [node.target for node in modes] == ["training"]


def test_a_buffer_changed_by_hand_in_training_is_said() -> None:
    def counted(net: Net, x: torch.Tensor) -> torch.Tensor:
        if net.training:
            net.shift.add_(1)
        return x

    captured = capture(Net(counted), SIZE)
    assert any("shift is changed by hand in training" in note and "test_capture.py:" in note for note in captured.notes)


def test_numbers_drawn_by_python_are_said() -> None:
    def skipped(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x * 0 if net.training and random.random() < 0.5 else x

    captured = capture(Net(skipped), SIZE)
    assert any("draws numbers by Python's or NumPy's generator" in note for note in captured.notes)
    assert not captured.graph.find_nodes(op="call_function", target=F.dropout)


def test_a_model_is_left_as_it_was() -> None:
    model = Net(alone)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    capture(model, SIZE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch_state, torch.get_rng_state()) and python_state == random.getstate()


def test_other_threads_run_modules_while_a_network_is_read() -> None:
    model, busy, failures = Net(halves), Net(halves), list[BaseException]()
    images, stop = torch.randn(2, 3, 32, 32), threading.Event()
    expected = busy.eval()(images)

    def infer() -> None:
        try:
            while not stop.is_set():
                assert torch.equal(busy(images), expected)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=infer)
    thread.start()
    for _ in range(10):
        capture(model, SIZE)
    stop.set()
    thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (lambda net, x: x if x.mean() > 0 else -x, r"depends on the values of a tensor, at .*test_capture\.py:\d+"),
        (lambda net, x: nn.Conv2d(8, 8, 1)(x), r"Conv2d is made in forward, at .*test_capture\.py:\d+"),
        (lambda net, x: x.view(2, 8, 300), r"refuses images of 3x32x32 .*test_capture\.py:\d+.*RuntimeError"),
    ],
    ids=["values", "a layer in passing", "a wrong shape"],
)
def test_refusals_name_the_line(middle: Callable[..., torch.Tensor], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        capture(Net(middle), SIZE)


def test_a_number_that_cannot_be_explained_is_refused_by_line() -> None:
    def odd(net: Net, x: torch.Tensor) -> torch.Tensor:
        return x * float(sum(int(digit) for digit in str(int(x.shape[2])))) + x * len(str(int(x.shape[3] ** 3)))

    with pytest.raises(ConversionError, match=r"the number .* at .*test_capture\.py:\d+ follows the size"):
        capture(Net(odd), SIZE)


def test_rows_that_are_not_images_are_no_size_that_fits() -> None:
    class Folds(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.fc(self.conv(x).permute(0, 2, 3, 1).reshape(-1, 8))
            return scores

    with pytest.raises(RefusedImages, match="512 rows for 2 images"):
        capture(Folds(halves), SIZE)


def test_a_leaf_may_look_at_values() -> None:
    @leaf
    class Guarded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clamp(max=9) if bool(x.max() > 9) else x

    model = Net(lambda net, x: net.guard(x))  # type: ignore[operator]
    model.guard = Guarded()
    nodes = capture(model, SIZE).graph.find_nodes(op="call_module", target="guard")
    assert [facts(node).opaque for node in nodes] == [True]


@pytest.mark.parametrize(
    ("number", "other", "wanted"),
    [
        (32, 96, "h"),
        (16, 48, "h // 2"),
        (128, 384, "h * 4"),
        (35, 99, "h + 3"),
        (1024, 96 * 128, "h * w"),
        (0.03125, 1 / 96, "h ** -1.0"),
        (7, 1000, None),
    ],
)
def test_numbers_are_explained_from_two_runs(number: float, other: float, wanted: str | None) -> None:
    image = Image()
    known = [(Size(image, 2), 32, 96), (Size(image, 3), 32, 128)]
    signs = {"mul": "*", "floordiv": "//", "add": "+", "pow": "**", "sub": "-"}

    def text(term: Any) -> str:
        if isinstance(term, Size):
            return "nchw"[term.axis]
        if isinstance(term, Made):
            one, two = map(text, term.operands)
            return f"{one} {signs[term.function.__name__]} {two}"
        return str(term)

    term = explain(number, other, known)
    assert (None if term is None else text(term)) == wanted
