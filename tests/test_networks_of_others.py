"""Idioms of networks that were written elsewhere: each once converted wrongly, or was refused without need."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from td_compiler import ConversionError, reverse, verify

SIZE = (3, 32, 32)
FILTERS = ("mirror", "uniform", "reversed")


def conv(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class ChannelsLast(nn.Module):
    """A block whose norm and linear layers read maps (N, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.grow, self.shrink = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = F.gelu(self.grow(y))
        y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-6)
        return x + self.shrink(y).permute(0, 3, 1, 2)


class NormFirst(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        down = [NormFirst(channels), nn.Conv2d(channels, width, 2, 2)]
        self.down = nn.ModuleList(down if channels != width else [])
        self.layers = nn.ModuleList([ChannelsLast(width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (*self.down, *self.layers):
            x = layer(x)
        return x


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 4, 4), NormFirst(8)
        self.stages = nn.ModuleList([Stage(8, 8), Stage(8, 12), Stage(12, 16)])
        self.last = nn.LayerNorm(16)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(pixel_values))
        for stage in self.stages:
            x = stage(x)
        return x


@dataclass
class Output(dict[str, Any]):
    """What a network of a library returns: fields that are keys, too."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


class ForClassification(nn.Module):
    """A trunk under a name that ends in a digit, keyword arguments, labels, an output object."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk2, self.classifier = Trunk(), nn.Linear(16, 5)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> Output:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        maps = self.trunk2(pixel_values)
        logits = self.classifier(self.trunk2.last(maps.mean([-2, -1])))
        loss = F.cross_entropy(logits, labels) if labels is not None else None
        return Output(loss, logits, (maps,) if output_hidden_states else None)


class ReturnsScores(ForClassification):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        scores = super().forward(pixel_values=x).logits
        assert scores is not None
        return scores


@pytest.mark.parametrize("filters", FILTERS)
def test_an_output_object_is_its_scores_and_layers_handed_to_a_block_have_names_of_their_own(filters: Any) -> None:
    torch.manual_seed(0)
    model = ForClassification()
    assert (result := verify(model, filters=filters, input_size=SIZE)).passed, result
    td, plain = (reverse(each, filters=filters, input_size=SIZE).eval() for each in (model, ReturnsScores()))
    plain.load_state_dict(td.state_dict())
    images = torch.randn(2, 3, 40, 36)
    assert torch.equal(td(images), plain(images))


def test_an_output_object_with_maps_beside_the_scores_is_refused_by_their_names() -> None:
    class WithMaps(ForClassification):
        def forward(self, pixel_values: torch.Tensor) -> Output:  # type: ignore[override]
            return super().forward(pixel_values, output_hidden_states=True)

    with pytest.raises(ConversionError, match=r"'logits', 'hidden_states.0'.* let its forward return one tensor"):
        reverse(WithMaps(), input_size=SIZE)


class Expanding(nn.Module):
    """A block that some instances lack the first layer of; its layers' names begin with an underscore."""

    def __init__(self, channels: int, width: int, stride: int, grow: int) -> None:
        super().__init__()
        inner = channels * grow
        self._expand: nn.Module = nn.Identity()
        if grow > 1:
            self._expand = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self._depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self._norm, self._project = nn.BatchNorm2d(inner), nn.Conv2d(inner, width, 1)
        self.residual = stride == 1 and channels == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._project(F.relu(self._norm(self._depthwise(self._expand(x)))))
        return x + y if self.residual else y


@pytest.mark.parametrize("filters", FILTERS)
def test_layers_that_some_blocks_lack_may_begin_with_an_underscore(filters: Any) -> None:
    blocks = [Expanding(8, 8, 1, 1), Expanding(8, 12, 2, 3), Expanding(12, 12, 1, 3), Expanding(12, 16, 2, 3)]
    model = nn.Sequential(conv(3, 8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    assert (result := verify(model, filters=filters, input_size=SIZE)).passed, result


class Gated(nn.Module):
    """Three stages, the second one with a gate, and a head that averages in a way of its own."""

    def __init__(
        self, gate: Callable[[int], nn.Module], head: Callable[[torch.Tensor], torch.Tensor] = lambda x: x.mean((2, 3))
    ) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 16), conv(16, 24)
        self.gate, self.head, self.fc = gate(16), head, nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gate(self.b(F.max_pool2d(self.a(x), 2)))
        return self.fc(self.head(self.c(F.max_pool2d(x, 2))))


class ByOddArithmetic(nn.Module):
    """A gate of a quarter's resolution, brought back to a size that is computed past a plain number."""

    def __init__(self, width: int, size: Callable[[int], int]) -> None:
        super().__init__()
        self.conv, self.size = nn.Conv2d(width, width, 1), size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(F.adaptive_avg_pool2d(x, 4))
        return x * torch.sigmoid(F.interpolate(y, size=(self.size(x.shape[2]), self.size(x.shape[3]))))


def assert_alike(one: nn.Module, other: nn.Module, *sizes: tuple[int, int]) -> None:
    """Two ways to write one network give one top-down network."""
    first, second = (reverse(model, input_size=SIZE).eval() for model in (one, other))
    state = first.state_dict()
    second.load_state_dict({name: state[name].view_as(value) for name, value in second.state_dict().items()})
    for size in sizes:
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(first(images), second(images))


def test_arithmetic_on_a_size_that_was_a_plain_number_on_the_way_follows_the_size() -> None:
    odd = Gated(lambda width: ByOddArithmetic(width, lambda n: 2 * n - int(n)))
    assert_alike(odd, Gated(lambda width: ByOddArithmetic(width, lambda n: n)), (32, 32), (48, 40), (33, 29))


class Context(nn.Module):
    """A global context: a weighted mean of all pixels, by products of height and width."""

    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.mask = nn.Conv2d(width, 1, 1)
        self.add = nn.Sequential(nn.Conv2d(width, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.size()
        weights = torch.softmax(self.mask(x).view(n, 1, h * w), 2).unsqueeze(-1)
        return x + self.add(torch.matmul(x.view(n, c, h * w).unsqueeze(1), weights).view(n, c, 1, 1))


def square_pool(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1)


def test_height_and_width_stay_apart_in_a_network_of_square_images() -> None:
    square = Gated(lambda width: Context(width, nn.GroupNorm(1, 4)), square_pool)
    assert_alike(square, Gated(lambda width: Context(width, nn.GroupNorm(1, 4))), (32, 32), (48, 40))


def test_a_layer_norm_of_a_single_pixel_follows_its_channels() -> None:
    norms = (nn.LayerNorm([4, 1, 1]), nn.GroupNorm(1, 4))
    one, other = (Gated(lambda width, norm=norm: Context(width, norm)) for norm in norms)  # type: ignore[misc]
    assert_alike(one, other, (32, 32), (33, 29))


class Keeps(nn.Module):
    """Computes something of its weights once, in evaluation, and keeps it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1, 1))
        self.cache: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "scale" not in self.cache:
            self.cache["scale"] = self.weight / self.weight.norm()
        return x * self.cache["scale"]


def test_what_an_earlier_call_left_is_refused_by_name_and_line() -> None:
    with pytest.raises(ConversionError, match=r"^'gate.cache_scale', read at .*others.py:\d+, .* compute it in every"):
        reverse(Gated(Keeps), input_size=SIZE)


class Same(nn.Conv2d):
    """A convolution of standardised weights that pads by what is left over, as TensorFlow does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for size, kernel, stride in zip(x.size()[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            pad = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [pad // 2, pad - pad // 2]
        x = F.pad(x, pads) if any(pads) else x
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride)


class Residual(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = Same(channels, width, 1, 2)
        self.first, self.second = Same(channels, width, 3, 2), Same(width, width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        return self.project(x) + self.second(F.relu(self.first(x)))


class Checkpointed(nn.Module):
    """Blocks whose maps are computed a second time in the backward; and a mean that is zero but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv(3, 8), nn.ModuleList([conv(8, 12, 2), conv(12, 12), conv(12, 16, 2)])
        self.centre = nn.Sequential(nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.training else block(x)
        return self.fc(F.relu(self.centre(x) + x).mean((2, 3)))


def same_padding() -> nn.Module:
    blocks = [Residual(8, 12), Residual(12, 16)]
    return nn.Sequential(conv(3, 8), *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("make", [same_padding, Checkpointed])
def test_verify_looks_at_everything_and_raises_no_false_alarm(make: Callable[[], nn.Module], filters: Any) -> None:
    torch.manual_seed(0)
    result = verify(make(), filters=filters, input_size=SIZE)
    assert [str(check) for check in result.checks if not check.passed] == []


class Tokens(nn.Module):
    """Two stages whose maps are normalised as lists of pixels, made maps again by a size that was read long before."""

    def __init__(self, block: Callable[[int], nn.Module] = lambda width: nn.Identity(), *, tokens: bool = True) -> None:
        super().__init__()
        self.embed = nn.ModuleList([conv(3, 8, 2), conv(8, 12, 2)])
        self.blocks, self.norms = nn.ModuleList(map(block, (8, 12))), nn.ModuleList(map(nn.LayerNorm, (8, 12)))
        self.classes, self.tokens = nn.Linear(12, 5), tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for embed, block, norm in zip(self.embed, self.blocks, self.norms, strict=True):
            x = embed(x)
            n, _, height, width = x.shape
            x = block(x)
            if self.tokens:
                x = norm(x.flatten(2).transpose(1, 2)).reshape(n, height, width, -1).permute(0, 3, 1, 2).contiguous()
            else:
                x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.classes(x.mean((2, 3)))


class Nested(nn.Module):
    """A residual block whose long way is one of its own, as of a visual attention network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = (
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, width, 1),
        )
        self.gate, self.scale = nn.Conv2d(width, width, 5, padding=2, groups=width), nn.Parameter(torch.ones(width) / 9)
        self.mlp = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        z = F.gelu(self.first(y))
        x = x + self.scale[:, None, None] * (y + self.second(z * self.gate(z)))
        return x + self.mlp(x)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("block", [nn.Identity, Nested])
def test_norms_of_lists_of_pixels_are_those_of_maps(block: Any, filters: Any) -> None:
    torch.manual_seed(0)
    tokens, maps = Tokens(block), Tokens(block, tokens=False)
    result = verify(tokens, filters=filters, input_size=SIZE)
    assert list(map(str, (check for check in result.checks if not check.passed))) == []
    one, other = (reverse(each, filters=filters, input_size=SIZE).eval() for each in (tokens, maps))
    other.load_state_dict(one.state_dict())
    images = torch.randn(2, 3, 40, 36)
    torch.testing.assert_close(one(images), other(images))


class ResponseNorm(nn.Module):
    """A norm of one's own at a block's end, behind a norm of torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.norm(dim=(2, 3), keepdim=True)
        return self.gain * (x * size / (size.mean(1, keepdim=True) + 1e-6)) + self.offset + x


class Mixed(torch.autograd.Function):
    """Two ways, mixed at random in training, other than backward: what the mode is, is an argument."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, training: bool) -> torch.Tensor:
        share = torch.rand(len(a), 1, 1, 1) if training else 0.5
        return share * a + (1 - share) * b

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        share = torch.rand(len(gradient), 1, 1, 1)
        return share * gradient, (1 - share) * gradient, None


class Shaken(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = conv(channels, width, stride), conv(channels, width, stride)
        self.short = nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Mixed.apply(self.one(x), self.two(x), self.training) + self.short(x)


class Flipped(nn.Module):
    """A network that scores its images and their mirror images in evaluation, and returns the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 12), nn.MaxPool2d(2), conv(12, 16))
        self.classes = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.training else torch.cat((x, x.flip(3)))
        scores = self.classes(self.body(x).amax((2, 3)))
        if not self.training:
            one, other = scores.split(scores.shape[0] // 2)
            scores = (one + other) / 2
        return scores


class HandWritten(nn.Module):
    """Layers of one's own that call one function of torch's, and a gain that is brought to the map's channels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down, self.norm, self.last = Kernel(channels, width), Affine(width), nn.Conv2d(width, width, 1)
        self.gain = nn.Parameter(1e-2 * torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.down(x))
        _, channels, _, _ = x.shape
        return x + self.gain.view(channels, 1, 1) * self.last(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Kernel(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, channels, 3, 3) / 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, None, 2, 1)


class Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = (width,)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias)


class Connect(nn.Module):
    """Drops whole images in training, by a batch size that is read in a function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = conv(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + dropped(self.body(x), 0.3, self.training)


def dropped(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    if not training:
        return x
    keep = torch.floor(1 - p + torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device))
    return x / (1 - p) * keep


def net(*layers: nn.Module, width: int = 16) -> nn.Module:
    return nn.Sequential(conv(3, 8), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: net(nn.MaxPool2d(2), ResponseNorm(8), conv(8, 16), nn.MaxPool2d(2), ResponseNorm(16)),
        lambda: net(Shaken(8, 12, 2), Shaken(12, 16, 2)),
        lambda: net(HandWritten(8, 12), HandWritten(12, 16)),
        lambda: net(nn.MaxPool2d(2), conv(8, 16), Connect(16), nn.MaxPool2d(2), Connect(16)),
        Flipped,
        lambda: net(nn.MaxPool2d(2), conv(8, 16), nn.MaxPool2d(2), nn.Conv2d(16, 1, 1), width=1),
    ],
    ids=["own_norm", "autograd", "by_hand", "drop_connect", "flipped", "one_value"],
)
def test_verify_passes_them(make: Callable[[], nn.Module], filters: Any) -> None:
    torch.manual_seed(0)
    result = verify(make(), filters=filters, input_size=SIZE)
    wrong = [check for check in result.checks if check.outcome == "failed" or "written as source" in check.detail]
    assert list(map(str, wrong)) == []


@functools.lru_cache
def _sizes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[1], shape[2] * shape[3]


class Kept(nn.Module):
    """Sizes that a function keeps from call to call, as einops' do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 12))
        self.classes = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.classes(x.reshape(_sizes(x.shape)).mean(2))


def test_sizes_that_an_earlier_conversion_left_in_a_cache_are_told_again() -> None:
    torch.manual_seed(0)
    model = Kept()
    one, other = (reverse(model, input_size=SIZE).eval() for _ in range(2))
    images = torch.randn(2, 3, 40, 36)
    assert torch.equal(one(images), other(images))


def test_a_network_of_frequencies_is_refused_as_one() -> None:
    class Filter(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])

    with pytest.raises(ConversionError, match="frequencies of a map at 'gate'"):
        reverse(Gated(Filter), input_size=SIZE)


def test_kernels_computed_of_the_image_are_refused_by_line() -> None:
    class Dynamic(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.route, self.weight = nn.Linear(width, 3), nn.Parameter(torch.randn(3, width, width, 3, 3) / 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, width, height, across = x.shape
            kernels = (torch.sigmoid(self.route(x.mean((2, 3)))) @ self.weight.flatten(1)).view(-1, width, 3, 3)
            return F.conv2d(x.reshape(1, -1, height, across), kernels, padding=1, groups=n).view(x.shape)

    with pytest.raises(ConversionError, match=r"convolution at 'gate', .*others.py:\d+, has a kernel that is computed"):
        reverse(Gated(Dynamic), input_size=SIZE)


class MixedPooling(nn.Module):
    """A pooling of one's own with a number of its own, which goes with it: upsampling stands in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.share * F.max_pool2d(x, 2) + (1 - self.share) * F.avg_pool2d(x, 2)


def test_verify_names_poolings_that_are_gone_with_their_numbers() -> None:
    result = verify(net(MixedPooling(), conv(8, 16), MixedPooling(), conv(16, 16)), input_size=SIZE)
    assert [str(check) for check in result.checks if not check.passed] == []
    assert any("upsampling stands in place of 1, 3" in check.detail for check in result.checks)
