"""Networks in the styles of public code, in all arrangements: every check passes, they train, they take other sizes.

Each stands for a manner of writing. None is made for the compiler. Where a network is another one in other words, that
one must become the same top-down network: as many parameters, and equal outputs with values drawn by shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler import ConversionError, reverse, verify
from td_compiler.network.base import TopDownNet
from tests.faults.common import close, fill, parameters, trains

SIZE = (3, 32, 32)
FILTERS = ("mirror", "uniform", "reversed")
Make = Callable[[int, int, int], nn.Module]


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions and a shortcut; `inner` acts on the branch, `act` behind every norm."""

    def __init__(
        self, cin: int, cout: int, stride: int = 1, inner: nn.Module | None = None, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.inner, self.act = inner or nn.Identity(), act or nn.ReLU()
        self.down = None
        if stride != 1 or cin != cout:
            self.down = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.inner(self.bn2(self.conv2(out)))
        return self.act(out + (x if self.down is None else self.down(x)))


class Net(nn.Module):
    """A stem of 8 filters, stages of two blocks with 8, 16 and 32 filters at the scales 1, 2 and 4, a linear head."""

    def __init__(self, make: Make = Residual, act: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        if act is not None:
            self.stem[2] = act
        self.layer1 = nn.Sequential(make(8, 8, 1), make(8, 8, 1))
        self.layer2 = nn.Sequential(make(8, 16, 2), make(16, 16, 1))
        self.layer3 = nn.Sequential(make(16, 32, 2), make(32, 32, 1))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(self.stem(x))))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.pool(self.features(x)).flatten(1))


def gated(gate: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(lambda cin, cout, stride: Residual(cin, cout, stride, gate(cout)))


def acting(act: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(lambda cin, cout, stride: Residual(cin, cout, stride, act=act()), act())


# Images prepared in a wrapper.


class Normalised(nn.Module):
    """As adversarial training code wraps its networks."""

    mu: Tensor
    sigma: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mu", torch.tensor([0.48, 0.45, 0.41]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("sigma", torch.tensor([0.23, 0.22, 0.22]).view(1, 3, 1, 1), persistent=False)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mu.to(x)).div(self.sigma.to(x)))


class Transformed(Net):
    """torchvision's functional transform."""

    def features(self, x: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import normalize

        return super().features(normalize(x, mean=[0.48, 0.45, 0.41], std=[0.23, 0.22, 0.22]))


class FlatNormalised(Net):
    """Mean and standard deviation per channel on a flattened image, as kornia does it."""

    def features(self, x: Tensor) -> Tensor:
        mean = torch.as_tensor([0.48, 0.45, 0.41], device=x.device, dtype=x.dtype)
        std = torch.as_tensor([0.23, 0.22, 0.22], device=x.device, dtype=x.dtype)
        flat = (x.reshape(x.shape[0], x.shape[1], -1) - mean[..., None]) / std[..., None]
        return super().features(flat.reshape(x.shape))


# What runs in training alone.


class Stochastic(Residual):
    """Stochastic depth with a rate of its own per block, drawn per image."""

    rate = 0.2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.training and self.rate > 0:
            keep = 1.0 - self.rate
            mask = keep + torch.rand((out.shape[0],) + (1,) * (out.ndim - 1), dtype=out.dtype, device=out.device)
            out = out.div(keep) * mask.floor()
        return F.relu(out + (x if self.down is None else self.down(x)))


class Mixed(Net):
    """Noise on the features, in training alone."""

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return x + 0.1 * torch.randn_like(x) if self.training else x


# Blocks that move channels.


class Shuffle(nn.Module):
    """Halves of the channels: one passes, one is computed; then they interleave."""

    def __init__(self, cin: int, cout: int, stride: int, how: str = "view") -> None:
        super().__init__()
        self.stride, self.how = stride, how
        half = cout // 2
        inner = cin if stride > 1 else half
        self.right = nn.Sequential(
            *conv_bn(inner, half, 1), *conv_bn(half, half, 3, stride, groups=half)[:2], *conv_bn(half, half, 1)
        )
        if stride > 1:
            self.left = nn.Sequential(*conv_bn(cin, cin, 3, stride, groups=cin)[:2], *conv_bn(cin, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            left, right = self.left(x), self.right(x)
        else:
            left, right = x.chunk(2, 1)
            right = self.right(right)
        if self.how == "stack":
            return torch.stack((left, right), dim=2).flatten(1, 2)
        x = torch.cat([left, right], 1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class Separable(nn.Module):
    """Columns are made fewer first, then rows."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.across = nn.Conv2d(cin, cout, (1, 3), (1, stride), (0, 1))
        self.down = nn.Conv2d(cout, cout, (3, 1), (stride, 1), (1, 0))
        self.norm, self.short = nn.BatchNorm2d(cout), nn.Conv2d(cin, cout, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.down(F.relu(self.across(x)))) + self.short(x))


class Unflattened(nn.Module):
    """A shuffle as libraries of axis patterns do it: n (g c) h w -> n (c g) h w."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (2, -1)).permute(0, 2, 1, 3, 4).flatten(1, 2)


# Gates.


class EcaSE(nn.Module):
    """Squeeze-excitation of 1x1 Conv1d layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv1d(width, width // 4, 1), nn.Conv1d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(x).squeeze(-1)
        return x * self.expand(self.reduce(y).relu()).sigmoid().unsqueeze(-1)


class Cbam(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Any = 0
        for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
            total = total + self.mlp(pool(x, 1))
        x = x * torch.sigmoid(total)[..., None, None].expand_as(x)
        pooled = torch.cat([x.max(1, keepdim=True)[0], x.mean(1).unsqueeze(1)], dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


class Coordinate(nn.Module):
    """Pooled over one axis at a time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = conv_bn(width, 8, 1)
        self.rows, self.columns = nn.Conv2d(8, width, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        down, across = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        y = self.squeeze(torch.cat([down, across], dim=2))
        down, across = torch.split(y, [h, w], dim=2)
        return x * self.rows(down).sigmoid() * self.columns(across.permute(0, 1, 3, 2)).sigmoid()


class PooledCoordinate(Coordinate):
    """The same, by poolings as large as the map."""

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        across = F.avg_pool2d(x, (h, 1)).permute(0, 1, 3, 2)
        down, across = torch.split(self.squeeze(torch.cat([F.avg_pool2d(x, (1, w)), across], dim=2)), [h, w], dim=2)
        return x * self.rows(down).sigmoid() * self.columns(across.permute(0, 1, 3, 2)).sigmoid()


class ScalarGate(nn.Module):
    """A learned factor without dimensions, zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.conv(x)


# Convolutions of other shapes.


class Asymmetric(nn.Module):
    """1x7 and 7x1, as in Inception, in a residual branch; a convolution strides."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(cin, cout, (1, 7), stride, (0, 3), bias=False)
        self.b = nn.Conv2d(cout, cout, (7, 1), 1, (3, 0), bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.skip = nn.Conv2d(cin, cout, 1, stride) if stride > 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.b(self.a(x))) + self.skip(x))


class PaddedSame(nn.Conv2d):
    """Padding as TensorFlow's 'SAME' has it, by the size of what comes in."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        down, across = (
            max((math.ceil(n / s) - 1) * s + k - n, 0)
            for n, s, k in zip((h, w), self.stride, self.kernel_size, strict=True)
        )
        if down > 0 or across > 0:
            x = F.pad(x, [across // 2, across - across // 2, down // 2, down - down // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Same(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv, self.bn = PaddedSame(cin, cout, 3, stride, bias=False), nn.BatchNorm2d(cout)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class EvenPadded(Residual):
    """Maps of odd size are padded before the block strides."""

    def forward(self, x: Tensor) -> Tensor:
        if self.conv1.stride[0] == 2 and (x.shape[2] % 2 or x.shape[3] % 2):
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return super().forward(x)


class MixConv(nn.Module):
    """Depthwise kernels of several sizes, each for a part of the channels."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.expand = conv_bn(cin, cout, 1)
        parts = [cout // 2, cout // 4, cout // 4]
        self.parts = parts
        self.convs = nn.ModuleList(
            nn.Conv2d(n, n, k, stride, k // 2, groups=n, bias=False) for n, k in zip(parts, (3, 5, 7), strict=True)
        )
        self.bn, self.project = nn.BatchNorm2d(cout), nn.Conv2d(cout, cout, 1, bias=False)
        self.same = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.expand(x), self.parts, dim=1)
        y = torch.cat([conv(piece) for conv, piece in zip(self.convs, pieces, strict=True)], 1)
        y = self.project(F.relu6(self.bn(y)))
        return x + y if self.same else y


class Ghost(nn.Module):
    """Half of the channels from cheap operations on the other half; cut to the width."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.cout = cout
        new = math.ceil(cout / 2)
        self.primary, self.cheap = conv_bn(cin, new, 3, stride), conv_bn(new, new, 3, groups=new)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], dim=1)[:, : self.cout, :, :]


class StdConv(nn.Conv2d):
    """Weights standardised on every run."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        weight = weight - mean
        std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return F.conv2d(x, weight / std, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(Residual):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__(cin, cout, stride)
        self.conv1 = StdConv(cin, cout, 3, stride, 1, bias=False)
        self.conv2 = StdConv(cout, cout, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.GroupNorm(4, cout), nn.GroupNorm(4, cout)  # type: ignore[assignment]


class BlurPool(nn.Module):
    """A binomial filter for every channel, subsampled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        line = torch.tensor([1.0, 2.0, 1.0])
        kernel = line[:, None] * line[None, :]
        self.register_buffer("filt", (kernel / kernel.sum())[None, None].repeat(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class Antialiased(nn.Module):
    """A dense convolution, then the blur in the place of a stride."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv = conv_bn(cin, cout)
        self.blur = BlurPool(cout) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(self.conv(x))


class Dilated(Net):
    """The last stage dilated in place of a stride, as segmentation backbones are."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.layer3.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if module.kernel_size == (3, 3):
                    module.dilation, module.padding = (2, 2), (2, 2)


class Unfolded(nn.Module):
    """A convolution by matrix product over unfolded patches, in the shortcut's branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9) / 9)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        patches = F.unfold(x, 3, padding=1).view(n, c, 9, h, w)
        return (patches * self.weight.view(1, 1, 9, 1, 1)).sum(2)


class Shuffled(nn.Module):
    """Space to depth and back around a convolution inside a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.conv = nn.Conv2d(4 * width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.conv(self.down(x)))


# Activations.


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grads[0] * (s * (1 + x * (1 - s)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Swish.apply(x)


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


class Limited(nn.Module):
    """h-swish by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x + 3).clamp(0, 6) / 6


# Heads and containers.


class GeM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(1) * 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(min=1e-6).pow(self.p)
        return F.avg_pool2d(x, (x.size(-2), x.size(-1))).pow(1.0 / self.p)


class Pooled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.pool = GeM()  # type: ignore[assignment]


class Described(Net):
    """Scores in a dictionary beside nothing else, under a key of the user's."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "loss": None}


class Staged(nn.Module):
    """Stages in a ModuleDict, handed on with a star."""

    def __init__(self) -> None:
        super().__init__()
        net = Net()
        self.body = nn.ModuleDict({f"stage_{i}": part for i, part in enumerate((net.stem, net.layer1))})
        self.body.update({"stage_2": net.layer2, "stage_3": net.layer3})
        self.fc = net.fc

    def collect(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name in sorted(self.body):
            x = self.body[name](x)
            maps.append(x)
        return maps

    def classify(self, *maps: Tensor) -> Tensor:
        return self.fc(maps[-1].mean(dim=[-1, -2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(*self.collect(x))


class Einsum(Net):
    """The mean as an einsum, the classifier as another."""

    def forward(self, x: Tensor) -> Any:
        x = self.features(x)
        pooled = torch.einsum("nchw->nc", x) / (x.shape[2] * x.shape[3])
        return F.linear(pooled, self.fc.weight, self.fc.bias)


class Looped(Net):
    """Blocks walked through by name, activations by getattr, in place."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(1, 4):
            for block in getattr(self, f"layer{i}").children():
                x = block(x)
        return x


@dataclass(frozen=True)
class Case:
    """A network, and the one that it is in other words, if there is one."""

    make: Callable[[], nn.Module]
    plain: Callable[[], nn.Module] | None = None
    scales: tuple[int, ...] = (1, 2, 4)
    sizes: tuple[tuple[int, int], ...] = ((40, 28),)


def normalised(net: TopDownNet) -> Callable[[Tensor], Tensor]:
    mean, std = torch.tensor([0.48, 0.45, 0.41]), torch.tensor([0.23, 0.22, 0.22])
    return lambda x: net((x - mean[:, None, None]) / std[:, None, None])


CASES = {
    "normalised in a wrapper": Case(lambda: Normalised(Net())),
    "normalised by torchvision": Case(Transformed),
    "normalised on a flat image": Case(FlatNormalised),
    "stochastic depth": Case(lambda: Net(Stochastic), Net),
    "noise on the features": Case(Mixed, Net),
    "shuffle by view": Case(lambda: Net(Shuffle)),
    "shuffle by unflatten": Case(gated(lambda width: Unflattened())),
    "shuffle by stack": Case(
        lambda: Net(lambda cin, cout, stride: Shuffle(cin, cout, stride, "stack")), lambda: Net(Shuffle)
    ),
    "coordinate attention": Case(gated(Coordinate)),
    "coordinate attention by poolings": Case(gated(PooledCoordinate), gated(Coordinate)),
    "rows and columns strided apart": Case(lambda: Net(Separable)),
    "squeeze-excitation by Conv1d": Case(gated(EcaSE)),
    "cbam": Case(gated(Cbam)),
    "scalar gate": Case(gated(ScalarGate)),
    "1x7 and 7x1": Case(lambda: Net(Asymmetric)),
    "padding by size": Case(lambda: Net(Same)),
    "padded to even": Case(lambda: Net(EvenPadded), Net),
    "mixed kernels": Case(lambda: Net(MixConv)),
    "ghost": Case(lambda: Net(Ghost)),
    "standardised weights": Case(lambda: Net(Standardised)),
    "blur pool": Case(lambda: Net(Antialiased)),
    "dilated": Case(Dilated, scales=(1, 2)),
    "unfold": Case(gated(Unfolded)),
    "pixel shuffle in a block": Case(gated(Shuffled), sizes=((40, 24),)),
    "swish with its own gradient": Case(acting(Swish), acting(nn.SiLU)),
    "mish by hand": Case(acting(Mish), acting(nn.Mish)),
    "hard swish by hand": Case(acting(Limited), acting(nn.Hardswish)),
    "generalised mean": Case(Pooled),
    "scores in a dictionary": Case(Described),
    "stages in a ModuleDict": Case(Staged, Net),
    "einsum head": Case(Einsum, Net),
    "blocks walked through": Case(Looped, Net),
}

# A network with as many parameters, in evaluation on normalised images the same.
PREPARED = [name for name in CASES if name.startswith("normalised")]


def scores(output: Any) -> Tensor:
    return output["logits"] if isinstance(output, dict) else output


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("name", CASES)
def test_idiom(name: str, filters: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    result = verify(case.make(), input_size=SIZE, filters=filters)
    assert not result.failures, str(result.failures[0])
    left_out = [str(check) for check in result.checks if check.skipped and "emitted" not in check.name]
    assert not left_out, left_out[0]
    td = result.td
    assert td is not None
    assert tuple(td.scales) == case.scales
    assert len(td.report.stages) == len(case.scales) + 1
    images = torch.rand(2, *SIZE)
    trains(_Scores(td), images)
    for height, width in case.sizes:
        assert scores(td(torch.rand(3, 3, height, width))).shape == (3, 10)
    plain = case.plain or (Net if name in PREPARED else None)
    if plain is None:
        return
    right = reverse(plain(), input_size=SIZE, filters=filters)
    assert parameters(td) == parameters(right)
    with torch.no_grad():
        expected = normalised(fill(right))(images) if name in PREPARED else fill(right)(images)
        close(scores(fill(td)(images)), expected, name)


class _Scores(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return scores(self.net(x))


class Viewed(nn.Module):
    """Wide enough for channels last; a view folds the channels into the batch and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 32), conv_bn(32, 48), conv_bn(48, 64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.max_pool2d(self.a(x), 2))
        n, c, h, w = x.shape
        x = (x.view(n * c, 1, h, w) * 2).view(n, c, h, w)
        return self.fc(self.c(F.max_pool2d(x, 2)).mean((2, 3)))


def test_views_of_maps() -> None:
    td = reverse(Viewed(), input_size=SIZE)
    assert td(torch.rand(2, *SIZE)).shape == (2, 10)


class Rows(nn.Module):
    """A filter for every row of a map."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv = conv_bn(cin, cout, 3, stride)
        side = {8: 32, 16: 16, 32: 8}[cout]
        self.rows = nn.Conv2d(side, side, 3, padding=1, groups=side)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(self.conv(x).transpose(1, 2)).transpose(1, 2)


def test_rows_are_no_channels() -> None:
    with pytest.raises(ConversionError, match=r"'layer1\.0\.rows' has one filter for every row"):
        reverse(Net(Rows), input_size=SIZE)
