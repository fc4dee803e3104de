"""What cannot be converted is refused with one sentence that says why, where, and what to do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from td_compiler import ConversionError, leaf, reverse, zoo


class Net(nn.Module):
    """A small CNN to derive from: two convolutions, the second strided."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 8, 3, stride=stride, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(F.relu(self.first(x))).mean((2, 3)))


class OneResolution(Net):
    def __init__(self) -> None:
        super().__init__(stride=1)


class NoConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean(2)


class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3, 4))


class NoScore(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class TwoScores(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, 2 * y


class TwoInputs(Net):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x * mask)


class DataDependent(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # the line that the message names
            x = x + 1
        return super().forward(x)


class ReadsData(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * x.max().item())


class Fixed(nn.Module):
    """A layer of a kind that the operator table does not know, with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nchw,cd->ndhw", x, self.weight)


class UnknownOperator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Fixed()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.mix(self.second(F.relu(self.first(x)))).mean((2, 3)))


class Attention(nn.Module):
    """Attention between all positions of a map (N, C, H, W), in either order of the products."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.qkv = nn.Conv2d(8, 24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.flatten(2) for part in self.qkv(x).chunk(3, dim=1))
        if self.linear:
            mixed = (v @ k.transpose(1, 2).softmax(1)) @ q
        else:
            mixed = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
        return x + mixed.reshape(x.shape)


class Attends(Net):
    linear = False

    def __init__(self) -> None:
        super().__init__()
        self.attend = Attention(self.linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.attend(self.second(self.first(x))).mean((2, 3)))


class AttendsLinearly(Attends):
    linear = True


class SideBySide(nn.Module):
    """Two resolutions that exchange features, as in HRNet, and only meet before the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.fine = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        fine, coarse = self.fine(x), self.down(x)
        fine = fine + F.interpolate(coarse, scale_factor=2)
        return self.fc((self.coarse(coarse) + self.last(fine)).mean((2, 3)))


class AroundStages(nn.Module):
    """A residual network of residual networks: one more shortcut around all of its stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.around = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, stride=4)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=s, padding=1) for s in (1, 2, 1, 2, 1))
        self.shortcuts = nn.ModuleList(nn.Conv2d(8, 8, 1, stride=s) for s in (1, 2, 1, 2, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = root = self.stem(x)
        for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
            x = F.relu(block(x)) + shortcut(x)
        return self.fc((x + self.around(root)).mean((2, 3)))


REFUSALS = [
    (OneResolution, "one resolution"),
    (NoConvolution, "no 2D convolution"),
    (Conv1d, "has Conv1d but no Conv2d"),
    (Conv3d, "has Conv3d but no Conv2d"),
    (NoScore, r"output of shape \(2, 8, \d+, \d+\) is no class score"),
    (TwoScores, r"returns 2 tensors"),
    (TwoInputs, "needs mask beside the images"),
    (DataDependent, r"the forward of DataDependent depends on the values of a tensor, at .*test_refusals.py:\d+.*leaf"),
    (ReadsData, r"the forward of ReadsData depends on the values of a tensor, at .*test_refusals.py:\d+"),
    (UnknownOperator, "no rule says how channels flow through einsum, which reads mix.weight, at 'mix'"),
    (Attends, "the network attends at 'attend'"),
    (AttendsLinearly, "the network attends at 'attend'"),
    (SideBySide, "from 'down' to 'add.*' the network keeps several resolutions side by side"),
    (AroundStages, "from 'blocks.1' to 'add.*' the network makes its map smaller 2 times and hands on two tensors"),
    (torchvision.models.vit_b_32, "the network attends at 'encoder"),
    (torchvision.models.swin_t, "the network attends at 'features.1.0.attn'"),
]


@pytest.mark.parametrize(("factory", "message"), REFUSALS, ids=lambda v: getattr(v, "__name__", ""))
def test_networks_without_a_counterpart(factory: type[nn.Module], message: str) -> None:
    with torch.device("meta"):
        model = factory()
    with pytest.raises(ConversionError, match=message) as caught:
        reverse(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": "mirorr"}, "filters='mirorr' is not one of mirror, uniform, reversed. Did you mean 'mirror'"),
        ({"merge": None}, "merge=None is not one of combined, add, concat"),
        ({"upsample": "bicubic"}, "upsample='bicubic' is not one of"),
        ({"downsample": "gauss"}, "Did you mean 'gaussian'"),
        ({"stem": "first"}, "stem='first' is not one of trailing, leading"),
        ({"init": True}, "init=True is not one of"),
        ({"head_width": 0}, "head_width=0 must be a positive number"),
        ({"input_size": (3, 32)}, r"input_size=\(3, 32\) must be three positive numbers"),
        ({"input_size": (1, 32, 32)}, r"refuses images of 1x32x32 at 'stem' \(inputs \(2, 1, 32, 32\)\)"),
    ],
    ids=str,
)
def test_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        reverse(zoo.resnet20(), **options)


def test_an_image_too_small_for_the_source() -> None:
    with pytest.raises(ConversionError, match=r"refuses images of 3x4x4 at 'features.\d+'.*input_size="):
        reverse(torchvision.models.vgg11(), input_size=(3, 4, 4))


def test_not_a_model() -> None:
    with pytest.raises(ConversionError, match=r"model is a str, not an nn\.Module"):
        reverse("resnet18")


def test_a_conversion_error_is_a_value_error() -> None:
    assert issubclass(ConversionError, ValueError)


class Gate(nn.Module):
    """Control flow that depends on data, in a module that keeps the shape of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class Gated(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.gate(self.second(F.relu(self.first(x)))).mean((2, 3)))


def test_a_submodule_that_cannot_be_traced_stays_a_leaf() -> None:
    td = reverse(Gated(), input_size=(3, 16, 16))
    assert isinstance(td.gate, Gate)
    assert td(torch.randn(2, 3, 16, 16)).shape == (2, 5)


@leaf
class Swish(nn.Module):
    """A module that could be traced but is to stay whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


class Swished(Net):
    def __init__(self) -> None:
        super().__init__()
        self.act = Swish()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.second(self.act(self.first(x)))).mean((2, 3)))


def test_leaf_keeps_a_module_whole() -> None:
    td = reverse(Swished(), input_size=(3, 16, 16))
    assert isinstance(td.act, Swish)
    assert td(torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_decisions_about_sizes_are_no_data() -> None:
    """`if` on a size, unpacking a shape and a loop over it are taken at the size of the trace."""

    class Sized(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, _, height, _ = x.shape
            assert len(x.shape) == 4
            if height > 8 and x.shape[1] == 3:
                x = F.relu(self.first(x))
            for _ in range(min(height, 1)):
                x = F.max_pool2d(self.second(x), 2)
            return self.fc(F.adaptive_avg_pool2d(x, 1).view(n, -1))

    td = reverse(Sized(), input_size=(3, 32, 32))
    assert td.scales == (1, 2, 4)
    assert td(torch.randn(3, 3, 19, 23)).shape == (3, 5)


def test_functional_dropout_follows_the_mode() -> None:
    class Dropped(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.second(F.relu(self.first(x))))
            return self.fc(F.dropout(x.mean((2, 3)), 0.5, training=self.training))

    td = reverse(Dropped(), input_size=(3, 16, 16))
    images = torch.randn(2, 3, 16, 16)
    assert not torch.equal(td.train()(images), td(images))
    assert torch.equal(td.eval()(images), td(images))
