# ruff: noqa
"""Top-down EfficientNet: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of torchvision:efficientnet_b0, written by td-compiler 0.1.0 with
    tdc convert torchvision:efficientnet_b0

    model = EfficientNetB0TD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
   32   1/32    320       5
   16   1/16    112       6
    8    1/8     40       2
    4    1/4     24       2
    2    1/2     16       1
    1      1     32       -
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


def _log_api_usage_once(obj: object) -> None:
    """Does nothing here; torchvision counts its uses with it."""


# fmt: off
def stochastic_depth(input: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """
    Implements the Stochastic Depth from `"Deep Networks with Stochastic Depth"
    <https://arxiv.org/abs/1603.09382>`_ used for randomly dropping residual
    branches of residual architectures.

    Args:
        input (Tensor[N, ...]): The input tensor or arbitrary dimensions with the first one
                    being its batch i.e. a batch with ``N`` rows.
        p (float): probability of the input to be zeroed.
        mode (str): ``"batch"`` or ``"row"``.
                    ``"batch"`` randomly zeroes the entire input, ``"row"`` zeroes
                    randomly selected rows from the batch.
        training: apply stochastic depth if is ``True``. Default: ``True``

    Returns:
        Tensor[N, ...]: The randomly zeroed tensor.
    """
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        _log_api_usage_once(stochastic_depth)
    if p < 0.0 or p > 1.0:
        raise ValueError(f"drop probability has to be between 0 and 1, but got {p}")
    if mode not in ["batch", "row"]:
        raise ValueError(f"mode has to be either 'batch' or 'row', but got {mode}")
    if not training or p == 0.0:
        return input

    survival_rate = 1.0 - p
    if mode == "row":
        size = [input.shape[0]] + [1] * (input.ndim - 1)
    else:
        size = [1] * input.ndim
    noise = torch.empty(size, dtype=input.dtype, device=input.device)
    noise = noise.bernoulli_(survival_rate)
    if survival_rate > 0.0:
        noise.div_(survival_rate)
    return input * noise
# fmt: on


# fmt: off
class StochasticDepth(nn.Module):
    """
    See :func:`stochastic_depth`.
    """

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        _log_api_usage_once(self)
        self.p = p
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        return stochastic_depth(input, self.p, self.mode, self.training)

    def __repr__(self) -> str:
        s = f"{self.__class__.__name__}(p={self.p}, mode={self.mode})"
        return s
# fmt: on


def upsample_nearest(x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) of an image by nearest neighbours."""
    return F.interpolate(x, size=image.shape[-2:], mode="nearest")


class Numbered(nn.ModuleDict):
    """Modules by number: `merge[16]` has its weights under `merge.16`."""

    def __init__(self, modules: dict[int, nn.Module]) -> None:
        super().__init__({str(number): modules[number] for number in modules})

    def __getitem__(self, number: int | str) -> nn.Module:
        return super().__getitem__(str(number))


@fx.wrap
def downsample_gaussian(images: torch.Tensor, factor: int | tuple[int, int]) -> torch.Tensor:
    """Anti-aliased resize of (N, C, H, W) to (N, C, ceil(H / factor), ceil(W / factor)); sigma = factor / 2 pixels."""

    def matrix(size: int, factor: int) -> torch.Tensor:
        if factor == 1:
            return torch.eye(size, device=images.device, dtype=dtype)
        pixels = torch.arange(size, device=images.device, dtype=dtype)
        rows = (size + factor - 1) // factor  # no negative sizes: ONNX truncates
        index = torch.arange(rows, device=images.device, dtype=dtype)
        distance = (pixels - ((index + 0.5) * factor - 0.5)[:, None]).abs()
        weights = torch.exp(-2 * (distance / factor) ** 2)
        weights = weights.masked_fill(distance >= 1.5 * factor, 0)
        return weights / weights.sum(dim=1, keepdim=True)

    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    down, across = (factor, factor) if isinstance(factor, int) else factor
    rows, columns = matrix(images.shape[-2], down), matrix(images.shape[-1], across)
    return (rows @ images.to(dtype) @ columns.mT).to(images.dtype)


class Entry(nn.Module):
    """Lifts an image to the width of its stage: `entry.32` and 5 more."""

    def __init__(self, in_chans: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(image)))


class Conv2dNormActivation(nn.Module):
    """`features.6.0.block.0` and 15 more."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False))
        self.add_module("1", nn.BatchNorm2d(out_channels))
        self.add_module("2", nn.SiLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "2")(getattr(self, "1")(getattr(self, "0")(x)))


class Conv2dNormActivation2(nn.Module):
    """`features.6.0.block.1` and 15 more."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.add_module(
            "0",
            nn.Conv2d(
                channels, channels, kernel_size=kernel_size, padding=kernel_size // 2, groups=channels, bias=False
            ),
        )
        self.add_module("1", nn.BatchNorm2d(channels))
        self.add_module("2", nn.SiLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "2")(getattr(self, "1")(getattr(self, "0")(x)))


class SqueezeExcitation(nn.Module):
    """`features.6.0.block.2` and 15 more."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, width, kernel_size=1)
        self.activation = nn.SiLU(inplace=True)
        self.fc2 = nn.Conv2d(width, channels, kernel_size=1)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(y)) * x


class Conv2dNormActivation3(nn.Module):
    """`features.6.0.block.3` and 15 more."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False))
        self.add_module("1", nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "1")(getattr(self, "0")(x))


class Merge(nn.Module):
    """Joins the map so far and the entry's map e: `merge.16` and 4 more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.act(self.norm(self.conv(x)))


class Transition(nn.Module):
    """Brings a map to the width of the next stage: `transition.1`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 32, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class MBConv(nn.Module):
    """`features.6.0` and 2 more."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv2dNormActivation(in_channels, 24 * width),
            Conv2dNormActivation2(24 * width, kernel_size=kernel_size),
            SqueezeExcitation(24 * width, width=width),
            Conv2dNormActivation3(24 * width, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class MBConv2(nn.Module):
    """`features.6.1` and 8 more."""

    def __init__(self, channels: int, kernel_size: int, p: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv2dNormActivation(4 * channels, 24 * channels),
            Conv2dNormActivation2(24 * channels, kernel_size=kernel_size),
            SqueezeExcitation(24 * channels, width=channels),
            Conv2dNormActivation3(24 * channels, 4 * channels),
        )
        self.stochastic_depth = StochasticDepth(p, "row")

    def forward(self, x: Tensor) -> Tensor:
        return self.stochastic_depth(self.block(x)) + x


class MBConvUp(nn.Module):
    """`features.4.0` and 2 more."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv2dNormActivation(in_channels, 24 * width),
            Conv2dNormActivation2(24 * width, kernel_size=kernel_size),
            SqueezeExcitation(24 * width, width=width),
            Conv2dNormActivation3(24 * width, out_channels),
        )

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = upsample_nearest(self.block[0](x), image)
        for block in self.block[1:]:
            x = block(x)
        return x


class MBConvUp2(nn.Module):
    """`features.1.0`."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv2dNormActivation2(24, kernel_size=3),
            SqueezeExcitation(24, width=8),
            Conv2dNormActivation3(24, 16),
        )

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = upsample_nearest(x, image)
        return self.block(x)


class Stage(nn.Sequential):
    """Blocks of one stage. The map grows to the image's size and is merged with the image's entry on the way."""

    def forward(self, x: Tensor, image: Tensor, entry: nn.Module, merge: nn.Module) -> Tensor:
        first, *blocks = self
        x = first(x, image)
        x = merge(x, entry(image))
        for block in blocks:
            x = block(x)
        return x


class Growing(nn.Sequential):
    """Layers between which the map grows to the image's size."""

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        (block,) = self
        return block(x, image)


class EfficientNetB0TD(nn.Module):
    """Top-down EfficientNet: class scores from images (N, C, H, W)."""

    scales = (1, 2, 4, 8, 16, 32)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 32
        self.head_hidden_size = 1280
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 192, 16: 80, 8: 40, 4: 24, 2: 16, 1: 32}.items()}
        )
        self.features = Numbered(
            {
                6: nn.Sequential(
                    MBConv(192, 192, kernel_size=5, width=28),
                    MBConv2(48, kernel_size=5, p=0.15000000000000002),
                    MBConv2(48, kernel_size=5, p=0.1625),
                    MBConv2(48, kernel_size=5, p=0.17500000000000002),
                ),
                7: nn.Sequential(MBConv(192, 320, kernel_size=3, width=48)),
                4: Stage(
                    MBConvUp(320, 80, kernel_size=3, width=10),
                    MBConv2(20, kernel_size=3, p=0.07500000000000001),
                    MBConv2(20, kernel_size=3, p=0.08750000000000001),
                ),
                5: nn.Sequential(
                    MBConv(80, 112, kernel_size=5, width=20),
                    MBConv2(28, kernel_size=5, p=0.1125),
                    MBConv2(28, kernel_size=5, p=0.125),
                ),
                3: Stage(MBConvUp(112, 40, kernel_size=5, width=6), MBConv2(10, kernel_size=5, p=0.05)),
                2: Stage(MBConvUp(40, 24, kernel_size=3, width=4), MBConv2(6, kernel_size=3, p=0.025)),
                1: Growing(MBConvUp2()),
                8: Conv2dNormActivation(32, 1280),
            }
        )
        self.merge = Numbered({16: Merge(80), 8: Merge(40), 4: Merge(24), 2: Merge(16), 1: Merge(32)})
        self.transition = Numbered({1: Transition()})
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(p=0.2, inplace=True), nn.Linear(1280, num_classes))
        if not num_classes:
            self.reset_classifier(0)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.classifier[1]

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.classifier[1] = nn.Linear(1280, num_classes) if num_classes else nn.Identity()
        init_weights(self.classifier[1])

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage32(self, image: Tensor) -> Tensor:
        x = self.entry[32](image)
        for i in range(6, 8):
            x = self.features[i](x)
        return x

    def stage16(self, x: Tensor, image: Tensor) -> Tensor:
        return self.features[5](self.features[4](x, image, self.entry[16], self.merge[16]))

    def stage8(self, x: Tensor, image: Tensor) -> Tensor:
        return self.features[3](x, image, self.entry[8], self.merge[8])

    def stage4(self, x: Tensor, image: Tensor) -> Tensor:
        return self.features[2](x, image, self.entry[4], self.merge[4])

    def stage2(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.features[1](x, image)
        return self.merge[2](x, self.entry[2](image))

    def stage1(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[1](x)
        return self.merge[1](upsample_nearest(x, image), self.entry[1](image))

    def stage_maps(self, levels: list[Tensor]) -> list[Tensor]:
        """The map after every stage, coarse to fine, from the images at every scale."""
        image1, image2, image4, image8, image16, image32 = levels
        x32 = self.stage32(image32)
        x16 = self.stage16(x32, image16)
        x8 = self.stage8(x16, image8)
        x4 = self.stage4(x8, image4)
        x2 = self.stage2(x4, image2)
        x1 = self.stage1(x2, image1)
        return [x32, x16, x8, x4, x2, x1]

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, of the images' size."""
        return self.stage_maps(self.pyramid(images))[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores from the last map; `pre_logits`: what the classifier reads."""
        x = self.features[8](x)
        x = torch.flatten(self.avgpool(x), 1)
        return self.classifier[:1](x) if pre_logits else self.classifier(x)

    def forward_pyramid(self, levels: list[Tensor]) -> Tensor:
        """Class scores from the images at every scale."""
        return self.forward_head(self.stage_maps(levels)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Class scores from images (N, C, H, W)."""
        return self.forward_head(self.forward_features(images))


def init_weights(module: nn.Module) -> None:
    """Give a layer the first values that the source network's have."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), mode="fan_out")
        nn.init.zeros_(module.bias)
