"""A fused network computes what evaluation mode does, with fewer layers, and is a network like any other."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from td_compiler import ConversionError, TopDownNet, fuse, reverse, zoo
from td_compiler.emission import emit_source
from td_compiler.network.taps import tapped
from tests.support.families import converted

Maker = Callable[[], nn.Module]


def prepared(model: nn.Module, **options: object) -> TopDownNet:
    """The top-down network in float64, with statistics and affine parameters that say something, in training mode."""
    torch.manual_seed(0)
    td = reverse(model.double(), **options)
    for module in td.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(2):
            td.train()(images_of(td))
    return td


def images_of(td: TopDownNet) -> torch.Tensor:
    channels, height, width = td.report.input_size
    return torch.randn(3, channels, height + 1, width - 1, dtype=torch.float64)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def check(td: TopDownNet) -> TopDownNet:
    """Fuse, compare scores and maps, and see that the source network is as it was."""
    state, mode = copy.deepcopy(td.state_dict()), td.training
    fused = fuse(td)
    assert not fused.training and td.training is mode
    assert all(torch.equal(value, state[name]) for name, value in td.state_dict().items())
    x = images_of(td)
    td.eval()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), td(x), rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(
            fused.stage_maps(fused.pyramid(x)),
            td.stage_maps(td.pyramid(x)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    return fused


class DenseLike(nn.Module):
    """Norms that read concatenations, beside one behind a convolution; dropout; a norm behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grow = nn.Conv2d(8, 4, 3, padding=1, groups=4)
        self.joined = nn.BatchNorm2d(12)
        self.down = nn.Conv2d(12, 10, 1)
        self.down_norm = nn.BatchNorm2d(10, affine=False)
        self.body = nn.Conv2d(10, 10, 3, padding=1)
        self.drop, self.same = nn.Dropout2d(0.5), nn.Identity()
        self.linear, self.vector_norm, self.scores = nn.Linear(10, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        x = self.joined(torch.cat([x, self.grow(x)], 1)).relu()
        x = nn.functional.max_pool2d(self.down_norm(self.down(x)), 2).relu()
        x = self.same(self.drop(self.body(x))).relu().mean((2, 3))
        return self.scores(self.vector_norm(self.linear(x)).relu())


# Which norms stay: those that read a sum, a concatenation, or what a stage begins with.
CASES: list[tuple[str, Maker, dict[str, object], int]] = [
    ("lenet_fc", zoo.lenet_fc, {}, 0),
    ("nin_light", zoo.nin_light, {"merge": "add", "upsample": "bilinear"}, 0),
    ("nin_light-plain", zoo.nin_light, {"merge": "concat", "upsample": "transposed"}, 0),
    ("resnet20", zoo.resnet20, {"input_size": (3, 16, 16)}, 12),
    ("resnet18", lambda: torchvision.models.resnet18(num_classes=5), {"input_size": (3, 33, 33)}, 0),
    ("mobilenet_v2", lambda: torchvision.models.mobilenet_v2(num_classes=5), {"input_size": (3, 32, 32)}, 0),
    ("dense-like", DenseLike, {"input_size": (3, 12, 12)}, 1),
]


@pytest.mark.parametrize(("maker", "options", "left"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_computes_the_same_with_fewer_layers(maker: Maker, options: dict[str, object], left: int) -> None:
    td = prepared(maker(), **options)
    fused = check(td)
    assert norms(fused) == left < norms(td)
    assert not any(isinstance(module, (nn.Dropout, nn.Dropout2d, nn.Identity)) for module in fused.modules())


def test_is_a_network_like_any_other() -> None:
    """Emitted, pickled, copied and tapped it computes the same; its emitted source takes its `state_dict`."""
    fused = check(prepared(zoo.resnet20(), input_size=(3, 16, 16)))
    x = images_of(fused)
    namespace: dict[str, type[nn.Module]] = {}
    exec(emit_source(fused, class_name="Network", origin="zoo:resnet20"), namespace)
    written = namespace["Network"]().double()
    written.load_state_dict(fused.state_dict(), strict=True)
    with torch.no_grad():
        expected = fused(x)
        assert torch.equal(written.eval()(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(fused))(x), expected)
        assert torch.equal(copy.deepcopy(fused)(x), expected)
        assert torch.equal(tapped(fused)(x), expected)
    again = fuse(fused)
    assert again.state_dict().keys() == fused.state_dict().keys()


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean 0 and deviation 1: not linear in its weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.square().mean((1, 2, 3), keepdim=True) + 1e-6).sqrt()
        return nn.functional.conv2d(input, weight, self.bias, self.stride, self.padding)


class AlwaysDrops(nn.Dropout):
    """Scales its input in evaluation mode too, where torch's own does nothing."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input * (1 - self.p)


class Awkward(nn.Module):
    """What must stay: a norm behind a convolution of another kind, one called twice, one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = Standardised(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.twice, self.twice_norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop = AlwaysDrops(0.25)
        self.batch, self.batch_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)
        self.fork, self.fork_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 6, 3, padding=1)
        self.scores = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        x = self.twice_norm(self.twice(x)).relu()
        x = self.drop(self.twice_norm(self.twice(x)).relu())
        x = nn.functional.max_pool2d(self.batch_norm(self.batch(x)), 2).relu()
        forked = self.fork(x)
        x = self.last((self.fork_norm(forked) + forked).relu()).relu()
        return self.scores(x.mean((2, 3)))


def test_what_cannot_be_folded_stays() -> None:
    td = prepared(Awkward(), input_size=(3, 12, 12))
    kept = {name for name, module in check(td).named_modules() if isinstance(module, _BatchNorm)}
    assert {"norm", "twice_norm", "batch_norm", "fork_norm"} <= kept


def test_a_layer_with_a_hook_is_still_called() -> None:
    td = prepared(zoo.lenet_fc())
    seen: list[torch.Tensor] = []
    td.entry["1"].norm.register_forward_hook(lambda _, __, out: seen.append(out))
    fused = check(td)
    seen.clear()
    fused(images_of(td))
    assert len(seen) == 1 and norms(fused) == 1


def test_a_network_without_weights_and_one_in_bfloat16() -> None:
    with torch.device("meta"):
        td = reverse(torchvision.models.resnet18())
    assert norms(fuse(td)) == 0
    small = reverse(zoo.lenet_fc().bfloat16())
    fused = fuse(small)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.bfloat16}
    assert "10 batch norms" in fused.report.notes[-1]


def test_what_is_no_top_down_network_is_refused() -> None:
    with pytest.raises(ConversionError, match="no top-down network"):
        fuse(zoo.lenet_fc())


def test_a_fused_network_changes_its_form() -> None:
    """Its layers keep the numbers that they had beside the norms that are gone."""
    fused = fuse(converted("mobilenet_v2"))
    images = torch.randn(2, 3, 64, 64)
    before, keys = fused(images), list(fused.state_dict())
    torch.testing.assert_close(fused.plain()(images), before)
    assert torch.equal(fused.fast()(images), before) and list(fused.state_dict()) == keys
