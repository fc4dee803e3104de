"""Emitted source of hand-made networks: it runs alone, loads strictly, is bit-equal and formatted, and reads well."""

from __future__ import annotations

import copy
import json
import operator
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler import reverse
from td_compiler.emission import emit_source
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import Plan, noted
from td_compiler.layers.pyramid import DOWNSAMPLERS, Pyramid
from td_compiler.layers.upsample import TransposedUpsample, upsample_bilinear, upsample_nearest
from td_compiler.network.base import TopDownNet
from td_compiler.network.segments import Segment
from td_compiler.report.report import Report


class Gain(nn.Module):
    """A leaf of the user's own that needs torch alone; its style is not the emitted file's."""

    def __init__(self, channels, start=1.0):  # type: ignore[no-untyped-def]
        super(Gain, self).__init__()  # noqa: UP008
        self.channels, self.start = channels, start
        self.gain = nn.Parameter(torch.full((channels, 1, 1), start))

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x * self.gain


class Forgetful(nn.Module):
    """A leaf that does not keep its argument."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))


class Dependent(nn.Module):
    """A leaf that needs more than torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(np.float32(2))


def halve(images: torch.Tensor, factor: int) -> torch.Tensor:
    return images[..., ::factor, ::factor] / 2


class Builder:
    """Writes the graph of one segment, node by node, and keeps its modules."""

    def __init__(self, modules: dict[str, nn.Module], name: str, scale: int, *inputs: str) -> None:
        self.modules, self.name, self.scale = modules, name, scale
        self.graph = fx.Graph()
        self.inputs = [self.graph.placeholder(name) for name in inputs]
        self.unit, self.class_name = "", ""

    def within(self, unit: str, class_name: str = "") -> None:
        self.unit, self.class_name = unit, class_name

    def _mark(self, node: fx.Node) -> fx.Node:
        noted(node, Plan(self.unit, self.class_name))
        return node

    def layer(self, path: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        self.modules.setdefault(path, module)
        return self._mark(self.graph.call_module(path, args))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self._mark(self.graph.call_function(function, args, kwargs))

    def method(self, name: str, *args: Any) -> fx.Node:
        return self._mark(self.graph.call_method(name, args))

    def attribute(self, path: str) -> fx.Node:
        return self._mark(self.graph.create_node("get_attr", path))

    def end(self, result: fx.Node) -> Segment:
        self.graph.output(result)
        return Segment(self.name, self.scale, self.graph)


def conv(inputs: int, outputs: int, kernel: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **kwargs)


def network(modules: dict[str, nn.Module], segments: list[Segment], downsample: Any = "gaussian") -> TopDownNet:
    torch.manual_seed(0)
    scales = tuple(segment.scale for segment in reversed(segments[:-1]))
    for module in modules.values():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) / 2)
    return TopDownNet(modules, segments, Pyramid(scales, downsample), Report("Net", (3, 16, 16), scales, ())).eval()


def entry(b: Builder, image: fx.Node, width: int) -> fx.Node:
    path = f"entry.{b.scale}"
    b.within(path)
    y = b.layer(f"{path}.conv", conv(3, width, bias=False), image)
    return b.layer(f"{path}.act", nn.ReLU(inplace=True), b.layer(f"{path}.norm", nn.BatchNorm2d(width), y))


def merge(b: Builder, x: fx.Node, e: fx.Node, width: int) -> fx.Node:
    path = f"merge.{b.scale}"
    b.within(path)
    both = b.call(torch.cat, (b.call(operator.add, x, e), e), 1)
    y = b.layer(f"{path}.conv", conv(2 * width, width), both)
    return b.call(F.relu, b.layer(f"{path}.norm", nn.BatchNorm2d(width, eps=1e-3), y), inplace=False)


def block(b: Builder, path: str, x: fx.Node, inputs: int, outputs: int, image: fx.Node | None = None) -> fx.Node:
    b.within(path, "BasicBlock")
    relu = nn.ReLU(inplace=True)
    y = b.layer(f"{path}.conv1", conv(inputs, outputs), x if image is None else b.call(upsample_nearest, x, image))
    y = b.layer(f"{path}.relu", relu, b.layer(f"{path}.bn1", nn.BatchNorm2d(outputs), y))
    y = b.layer(f"{path}.conv2", conv(outputs, outputs), y)
    if image is not None:
        x = b.layer(f"{path}.downsample.0", conv(inputs, outputs, 1, bias=False), x)
        x = b.call(upsample_nearest, b.layer(f"{path}.downsample.1", nn.BatchNorm2d(outputs), x), image)
    return b.layer(f"{path}.relu", relu, b.call(operator.iadd, y, x))


def head(modules: dict[str, nn.Module], width: int) -> Segment:
    b = Builder(modules, "head", 1, "x")
    y = b.call(torch.flatten, b.layer("avgpool", nn.AdaptiveAvgPool2d(1), *b.inputs), 1)
    for i, layer in enumerate((nn.Linear(width, 8), nn.Dropout(0.2), nn.Linear(8, 5, bias=False))):
        y = b.layer(f"classifier.{i}", layer, y)
    return b.end(y)


def residual() -> TopDownNet:
    """Three stages of basic blocks; the finer two begin with a projected, upsampling block."""
    modules: dict[str, nn.Module] = {}
    segments = []
    for stage, (scale, width, blocks) in enumerate(((4, 16, 2), (2, 8, 4), (1, 4, 3))):
        b = Builder(modules, f"stage{scale}", scale, *(["x", "image"] if stage else ["image"]))
        image = b.inputs[-1]
        if stage:
            x = block(b, f"layer{3 - stage}.0", b.inputs[0], 2 * width, width, image)
            x = merge(b, x, entry(b, image, width), width)
        else:
            x = block(b, "layer3.0", entry(b, image, width), width, width)
        for i in range(1, blocks):
            x = block(b, f"layer{3 - stage}.{i}", x, width, width)
        segments.append(b.end(x))
    return network(modules, [*segments, head(modules, 4)])


def plain() -> TopDownNet:
    """A list of layers with gaps, merged by addition, over frequency bands."""
    modules: dict[str, nn.Module] = {}
    b = Builder(modules, "stage2", 2, "image")
    x = entry(b, b.inputs[0], 6)
    b.within("features.5")
    for i in (5, 6, 7):
        x = b.layer(f"features.{i}", conv(6, 6) if i != 6 else nn.ReLU6(inplace=True), x)
    coarse = b.end(x)
    b = Builder(modules, "stage1", 1, "x", "image")
    x = b.call(upsample_bilinear, b.layer("transition.1", nn.Conv2d(6, 4, 1), b.inputs[0]), b.inputs[1])
    x = b.call(operator.add, x, entry(b, b.inputs[1], 4))
    b.within("features.0")
    for i in (0, 2):
        x = b.call(F.relu, b.layer(f"features.{i}", conv(4, 4, groups=4 if i else 1), x), True)
        x = b.call(F.max_pool2d, x, kernel_size=3, stride=1, padding=1, dilation=1, ceil_mode=False)
    return network(modules, [coarse, b.end(x), head(modules, 4)], "laplacian")


class Shuffle(nn.Module):
    """Parameters and buffers that belong to no layer, held at a unit's path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.register_buffer("mask", torch.tensor([0.1, 1e-7, -2.5]), persistent=False)


def direct() -> TopDownNet:
    """Direct parameters, a channel shuffle with sizes, a gate, learned upsampling, odd names, a leaf of the user's."""
    modules: dict[str, nn.Module] = {}
    segments = []
    for stage, (scale, width) in enumerate(((2, 8), (1, 12))):
        b = Builder(modules, f"stage{scale}", scale, *(["x", "image"] if stage else ["image"]))
        x = entry(b, b.inputs[-1], width)
        b.within(f"blocks.{stage}", "_ShuffleBlock")
        modules[f"blocks.{stage}"] = Shuffle(width)
        size = b.method("size", x)
        n, c, h, w = (b.call(operator.getitem, size, i) for i in range(4))
        y = b.method("view", x, n, 2, b.call(operator.floordiv, c, 2), h, w)
        y = b.method("flatten", b.method("transpose", y, 1, 2), 1, 2)
        first = b.call(operator.getitem, b.method("chunk", y, 2, 1), 0)
        first = b.layer(f"blocks.{stage}.branch.0", conv(width // 2, width // 2, 5), first)
        first = b.layer(f"blocks.{stage}.branch.1", nn.GroupNorm(2, width // 2), first)
        y = b.call(torch.cat, (first, b.call(operator.getitem, y, (slice(None), slice(width // 2, None)))), dim=1)
        gate = b.call(F.adaptive_avg_pool2d, y, (1, 1))
        gate = b.method("sigmoid", b.layer(f"blocks.{stage}.se.fc", nn.Conv2d(width, width, 1), gate))
        y = b.call(operator.mul, y, gate)
        y = b.call(operator.mul, y, b.attribute(f"blocks.{stage}.gamma"))
        y = b.call(operator.sub, y, b.attribute(f"blocks.{stage}.shift"))
        y = b.call(operator.mul, y, b.call(operator.getitem, b.attribute(f"blocks.{stage}.mask"), 1))
        y = b.call(operator.pow, y, 2)
        y = b.call(F.layer_norm, b.method("permute", y, 0, 2, 3, 1), (width,), None, None, 1e-6)
        x = b.call(operator.add, x, b.method("permute", y, 0, 3, 1, 2))
        if stage:
            b.within("")
            up = b.layer("upsample.1.0", TransposedUpsample(8, (2, 2)), *b.inputs)
            up = b.layer("stage1", conv(8, width, 1), up)
            x = b.call(operator.add, b.layer("7", Gain(12, start=0.5), x), up)
        segments.append(b.end(x))
    return network(modules, [*segments, head(modules, 12)], halve)


NETWORKS = {"residual": residual, "plain": plain, "direct": direct}
RUN_ALONE = """
import importlib.util, json, pathlib, sys
sys.modules["td_compiler"] = None  # importing it fails
import torch
equal = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state, images, scores = torch.load(path.with_suffix(".pt"))
    network = module.Net().eval()
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        equal[path.stem] = torch.equal(network(images), scores)
print(json.dumps(equal))
"""


def emit(td: TopDownNet) -> str:
    return emit_source(td, class_name="Net", origin="zoo:net", command="tdc convert zoo:net --filters mirror")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every network's source, beside its state, images of odd size and scores."""
    folder = tmp_path_factory.mktemp("emitted")
    for name, build in NETWORKS.items():
        td, images = build(), torch.rand(2, 3, 17, 15)
        (folder / f"{name}.py").write_text(emit(td))
        with torch.no_grad():
            torch.save((td.state_dict(), images, td(images)), folder / f"{name}.pt")
    return folder


def test_emitted_source_runs_alone_loads_strictly_and_is_bit_equal(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN_ALONE, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(NETWORKS, True)


def ruff(*arguments: str) -> str:
    """What ruff finds, with the configuration that it has by default."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "--line-length=120"], capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_emitted_source_is_clean_and_formatted(folder: Path, tmp_path: Path) -> None:
    for name in DOWNSAMPLERS:
        b = Builder({}, "stage1", 1, "image")
        coarse = Builder({}, "stage2", 2, "image")
        bands = network(b.modules, [coarse.end(coarse.inputs[0]), b.end(b.inputs[0]), head(b.modules, 3)], name)
        (tmp_path / f"{name}.py").write_text(emit(bands))
    for place in (folder, tmp_path):
        assert ruff("check", "--isolated", "--select", "E,F,I,UP", str(place)) == ""
        assert ruff("format", "--isolated", "--check", str(place)) == ""


def test_units_of_one_kind_share_a_class(folder: Path) -> None:
    source = (folder / "residual.py").read_text()
    names = [line[6:].partition("(")[0] for line in source.splitlines() if line.startswith("class ")]
    assert names == ["Numbered", "Entry", "BasicBlock", "Merge", "Stage", "Net"]
    assert "in_chans, out_channels, kernel_size=3, padding=1, bias=False" in source
    assert "Numbered({4: Entry(in_chans, 16), 2: Entry(in_chans, 8), 1: Entry(in_chans, 4)})" in source
    assert "self.layer3 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))" in source
    assert "self.layer2 = Stage(BasicBlock(16, 8), *[BasicBlock(8, 8) for _ in range(3)])" in source


def test_what_some_units_of_a_kind_lack_stands_under_a_condition(folder: Path) -> None:
    source = (folder / "residual.py").read_text()
    assert (
        "self.downsample = None\n        if in_channels != out_channels:\n            self.downsample = nn.Seq"
        in source
    )
    assert "if self.downsample is not None:\n            x = self.downsample(x)\n" in source
    assert "y = x if image is None else upsample_nearest(x, image)" in source


def test_docstrings_say_what_a_unit_does(folder: Path) -> None:
    source = (folder / "residual.py").read_text()
    assert '"""Lifts the image to the width of a stage: a 3x3 convolution."""' in source
    assert '"""Residual block: two 3x3 convolutions. Given `image`, the map grows to its size."""' in source
    assert '"""Joins the map x and the image\'s entry e: a 3x3 convolution of [x + e, e]."""' in source


class DenseBlock(nn.Module):
    """Layers that read all maps before them, by a loop in Python that a graph does not have."""

    def __init__(self, inputs: int, depth: int) -> None:
        super().__init__()
        for i in range(depth):
            self.add_module(f"layer{i + 1}", nn.Sequential(nn.Conv2d(inputs + 4 * i, 4, 3, padding=1), nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x]
        for layer in self.children():
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


def dense(*depths: int) -> nn.Module:
    stages: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    width = 8
    for depth in depths:
        stages += [DenseBlock(width, depth), nn.MaxPool2d(2)]
        width += 4 * depth
    return nn.Sequential(*stages[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def test_deeper_dense_networks_are_no_longer() -> None:
    short, long = (emit(reverse(dense(*depths), input_size=(3, 32, 32), fast=False)) for depths in ((3, 4), (6, 9)))
    assert short.count("\n") == long.count("\n")
    assert "for layer in self.children():\n            maps.append(layer(torch.cat(maps, 1)))" in short
    assert "for i in range(depth):\n            self.add_module(\n" in short
    assert "nn.Conv2d(channels + i * 4, 4, kernel_size=3, padding=1)" in short


def test_forward_calls_whole_containers_loops_and_operators(folder: Path) -> None:
    residual, plain = (folder / "residual.py").read_text(), (folder / "plain.py").read_text()
    assert "return self.layer3(self.entry[4](image))" in residual
    assert "return self.layer2(x, image, self.entry[2], self.merge[2])" in residual
    assert "x = merge(x, entry(image))\n        for block in blocks:\n            x = block(x)" in residual
    assert "y += x\n        return self.relu(y)" in residual
    assert "return self.classifier[:2](x) if pre_logits else self.classifier(x)" in plain
    assert "for i in range(5, 8):\n            x = self.features[i](x)" in plain
    assert "x = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)" in plain
    assert (
        "return laplacian_bands([images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])])" in plain
    )


def test_emission_is_deterministic() -> None:
    td = residual()
    assert emit(td) == emit(copy.deepcopy(td)) == emit(residual())


def test_header_keeps_to_the_width_and_to_one_docstring() -> None:
    td = plain()
    command = 'tdc convert C:\\models\\net.py:make """x""" ' + "--arg a=1 " * 20
    source = emit_source(td, class_name="Net", origin="a\nb", command=command)
    compile(source, "emitted", "exec", dont_inherit=True)
    assert max(map(len, source.splitlines())) <= 120


OPERATIONS: list[Callable[..., fx.Node]] = [
    lambda b, x, y: b.call(operator.add, x, y),
    lambda b, x, y: b.call(operator.iadd, x, y),
    lambda b, x, y: b.call(operator.imul, x, y),
    lambda b, x, y: b.call(F.relu, x, inplace=True),
    lambda b, x, y: b.method("add_", x, y),
    lambda b, x, y: b.method("chunk", b.call(torch.cat, [x, y], 1), 2, 1),
    lambda b, x, y: b.layer("tail.0", nn.ReLU(inplace=True), x),
    lambda b, x, y: b.layer("tail.1", conv(4, 4), b.layer("tail.0", nn.ReLU(inplace=True), x)),
    lambda b, x, y: b.call(operator.neg, b.call(operator.sub, x, y)),
    lambda b, x, y: b.method("abs", b.call(operator.mul, x, 0.5)),
]


@pytest.mark.parametrize("seed", range(40))
def test_names_nesting_and_in_place_operators_keep_the_meaning_of_random_graphs(seed: int) -> None:
    """Values that live on beside their own in-place change are where a wrong name would show."""
    choose = random.Random(seed)
    b = Builder({}, "stage1", 1, "image")
    values = [b.layer("entry.1.conv", conv(3, 4), b.inputs[0])]
    values.append(b.call(operator.mul, values[0], 2))
    for _ in range(14):
        value = choose.choice(OPERATIONS)(b, *choose.choices(values[-4:], k=2))
        values.append(b.call(operator.getitem, value, 1) if value.target == "chunk" else value)
    td = network(b.modules, [b.end(choose.choice(values[-3:])), head(b.modules, 4)])
    scope: dict[str, Any] = {"__name__": "emitted"}
    source = emit(td)
    exec(source, scope)
    emitted = scope["Net"]().eval()
    emitted.load_state_dict(td.state_dict(), strict=True)
    images = torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(emitted(images.clone()), td(images.clone())), source


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (Forgetful(4), "extra: .*Forgetful cannot be written as source: .*set self.channels = channels"),
        (Dependent(), "extra: .*Dependent cannot be carried into emitted source: it refers to np,"),
    ],
)
def test_a_leaf_that_cannot_be_written_is_refused_by_path_and_class(leaf: nn.Module, message: str) -> None:
    b = Builder({}, "stage1", 1, "image")
    x = b.layer("extra", leaf, b.inputs[0])
    with pytest.raises(ConversionError, match=message):
        emit(network(b.modules, [b.end(x), head(b.modules, 3)]))


@pytest.mark.parametrize("downsample", [lambda images, factor: images, nn.AvgPool2d(2)])
def test_a_downsampling_without_source_is_refused(downsample: Any) -> None:
    b = Builder({}, "stage1", 1, "image")
    with pytest.raises(ConversionError, match=r"pyramid: .*top level of a module"):
        emit(network(b.modules, [b.end(b.inputs[0]), head(b.modules, 3)], downsample))
