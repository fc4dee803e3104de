"""What stays one and what stays the same: tied weights, shared layers, computed weights, names (SPEC 2.14)."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from td_compiler import ConversionError, reverse, verify, zoo
from td_compiler.emission import emit_source
from td_compiler.network.base import TopDownNet

SIZE = (3, 32, 32)


class Residual(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        changes = stride > 1 or width_in != width
        self.short = nn.Conv2d(width_in, width, 1, stride) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.short(x))


class Small(nn.Module):
    """A stem and two stages, so that every kind of place (stem, block, projection, head) has a convolution."""

    def __init__(self, wrap: Callable[[nn.Module], Any] = lambda layer: layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 16, 1))
        self.fc = nn.Linear(16, 5)
        for layer in list(self.modules()):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                wrap(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def trains(td: TopDownNet) -> None:
    td.train()
    td(torch.rand(2, *SIZE)).square().mean().backward()
    assert [name for name, p in td.named_parameters() if p.grad is None] == []


def as_text(td: TopDownNet) -> nn.Module:
    """An instance made of the network's emitted source, with its values."""
    namespace: dict[str, Any] = {}
    exec(emit_source(td, class_name="Written", origin="test"), namespace)
    written: nn.Module = namespace["Written"]()
    written.load_state_dict(td.state_dict())
    return written


def assert_same(td: TopDownNet, other: nn.Module) -> None:
    images = torch.rand(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(td.eval()(images), other.eval()(images))


class Centred(nn.Module):
    """A parametrisation of a user's own."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight - weight.mean()


class Equalised:
    """A hook of a user's own that computes a weight, as in networks with an equalised learning rate."""

    def __init__(self, layer: nn.Module) -> None:
        weight = layer._parameters.pop("weight")
        assert weight is not None
        layer.register_parameter("weight_orig", nn.Parameter(weight.detach()))
        layer.weight = weight.detach()
        layer.register_forward_pre_hook(self)

    def __call__(self, layer: nn.Module, inputs: Any) -> None:
        original = layer.get_parameter("weight_orig")
        layer.weight = original * original[0].numel() ** -0.5


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm, of the whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm, old": spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "a user's own": lambda layer: parametrize.register_parametrization(layer, "weight", Centred()),
}


@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_stay_computed(kind: str, filters: Any) -> None:
    model = Small(COMPUTED[kind]).train()
    before = copy.deepcopy(model.state_dict())
    td = reverse(model, input_size=SIZE, filters=filters)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for path, layer in td.named_modules():
        if isinstance(layer, nn.Conv2d) and path in dict(model.named_modules()):
            assert "weight" not in layer._parameters, path
    copy.deepcopy(td)
    trains(td)
    if kind != "a user's own":
        assert_same(td, as_text(td))


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_pass_every_check(kind: str) -> None:
    model = Small(COMPUTED[kind]).train()
    assert verify(model, reverse(model, input_size=SIZE), input_size=SIZE).failures == ()


def test_hooks_of_a_users_own_are_kept_or_refused_by_name() -> None:
    model = Small()
    Equalised(model.blocks[2].conv2)
    td = reverse(model, input_size=SIZE)
    trains(td)
    assert td.get_parameter("blocks.2.conv2.weight_orig").grad is not None
    with pytest.raises(ConversionError, match=r"blocks\.2\.conv2.*Equalised"):
        reverse(model, input_size=SIZE, filters="uniform")


def test_tied_weights_are_one_in_text_and_copies() -> None:
    model = Small()
    model.blocks[2].conv2.weight = model.blocks[2].conv1.weight
    td = reverse(model, input_size=SIZE)
    for network in (td, as_text(td), copy.deepcopy(td), pickle.loads(pickle.dumps(td))):
        assert network.get_parameter("blocks.2.conv2.weight") is network.get_parameter("blocks.2.conv1.weight")
    assert verify(model, td, input_size=SIZE).failures == ()


def test_a_weight_tied_to_a_parameter_in_a_function() -> None:
    class Tied(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.blocks(F.relu(self.stem(x)))
            return self.fc(F.relu(F.conv2d(x, self.blocks[2].conv1.weight, padding=1)).mean((2, 3)))

    model = Tied()
    td = reverse(model, input_size=SIZE)
    trains(td)
    assert len([n for n in td.state_dict() if n.endswith("blocks.2.conv1.weight")]) == 1


class Odd(nn.Module):
    """A layer and a parameter under given names, at the top and inside a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Linear(8, 2)
        self.inner = nn.Module()
        self.inner.add_module(name, nn.Conv2d(8, 8, 3, 1, 1))
        self.outer = nn.Module()
        self.outer.register_parameter(name, nn.Parameter(torch.ones(8, 1, 1)))
        self.add_module(f"{name}_layer", nn.Conv2d(8, 8, 3, 1, 1))
        self.register_parameter(name, nn.Parameter(torch.ones(8, 1, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        x = F.relu(self.inner.get_submodule(self.name)(x)) * getattr(self.outer, self.name)
        x = F.relu(self.get_submodule(f"{self.name}_layer")(x)) * getattr(self, self.name)
        return self.fc(x.mean((2, 3)))


NAMES = [
    *("class", "None", "in", "0abc", "3x3", "a b", "it's", 'say "hi"', "two\nlines", "back\\slash", "{x}", "'\"\\n"),
    *("e\u0301", "\ufb01", "\u0663", "\U0001f600", "\u2028", "__hidden", "keys", "values", "items", "update", "self"),
    *("pyramid", "entry", "merge", "scales", "report", "features", "segments", "prologue", "parts", "nn", "torch", "x"),
    *("F", "image", "stage1", "classify", "head", "projection", "transition", "upsample", "save_pretrained"),
    "')) or exit(3) or getattr(self, '",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_data(name: str) -> None:
    model = Odd(name)
    td = reverse(model, input_size=SIZE)
    assert len(td.pyramid(torch.rand(1, *SIZE))) == len(td.scales) == 2 and td.report.stages
    trains(td)
    written = as_text(td)
    assert_same(td, written)
    assert list(written.state_dict()) == list(td.state_dict())
    assert verify(model, reverse(model, input_size=SIZE), input_size=SIZE).failures == ()


@pytest.mark.parametrize("name", ["class", "list", "two\nlines", "\ufb01", "nn", "x: pass\nimport os\nclass y"])
def test_names_of_classes_are_data(name: str) -> None:
    kind = type(name, (Residual,), {"__module__": __name__})
    model = Small()
    model.blocks[2] = kind(16, 16, 1)
    model.__class__ = type(name, (Small,), {"__module__": __name__})
    td = reverse(model, input_size=SIZE)
    assert_same(td, as_text(td))
    with pytest.raises(ConversionError, match="no name for a class"):
        emit_source(td, class_name=name if name not in ("\ufb01",) else "a b", origin="test")


def test_origins_and_commands_are_data() -> None:
    td = reverse(zoo.lenet_fc())
    for text in ('"""', "\\", "a\nb", '"', "\x00\x1b\u2028", "\ud800", '""" + exit(3) + """'):
        source = emit_source(td, class_name="Net", origin=text, command=text)
        exec(compile(source.encode().decode(), "emitted", "exec"), {})


FAMILIES = {
    "plain": "zoo.nin_light()",
    "no stem": "zoo.lenet_fc()",
    "pre-activation": "zoo.resnet(20)",
    "bottleneck": "tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], num_classes=3)",
    "dense": "tv.DenseNet(8, (2, 2, 2), 16, num_classes=3)",
    "squeeze": "tv.squeezenet1_1(num_classes=3)",
    "inverted": "tv.mobilenet_v3_small(num_classes=3)",
    "grouped": "tv.shufflenet_v2_x0_5(num_classes=3)",
    "branches": "tv.googlenet(num_classes=3, aux_logits=False, init_weights=False)",
    "layer norm": "tv.ConvNeXt([tv.convnext.CNBlockConfig(8, 16, 2), tv.convnext.CNBlockConfig(16, None, 2)])",
}
HASHED = """
import hashlib
from torchvision import models as tv
from td_compiler import reverse, zoo
from td_compiler.emission import emit_source
for make in {makes!r}:
    td = reverse(eval(make))
    text = emit_source(td, class_name="Net", origin="test") + "".join(td.state_dict()) + "".join(td.report.notes)
    print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_text_and_state_do_not_depend_on_hashes() -> None:
    """One network of each family under five seeds of Python's hashes: the same text, order of state and notes."""
    program = HASHED.format(makes=list(FAMILIES.values()))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(5)
    ]
    found = [process.communicate()[0].split() for process in running]
    for family, *hashes in zip(FAMILIES, *found, strict=True):
        assert len(set(hashes)) == 1, family
