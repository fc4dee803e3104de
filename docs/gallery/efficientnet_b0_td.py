"""Top-down EfficientNet: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of torchvision:efficientnet_b0, written by td-compiler 0.2.0 with
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


class DropPath(nn.Module):
    """Stochastic depth: in training, leaves out whole samples with probability p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * kept.div_(1 - self.p)


def upsample_nearest(x: Tensor, image: Tensor) -> Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) of an image by nearest neighbours."""
    return F.interpolate(x, size=image.shape[-2:], mode="nearest")


class Numbered(nn.ModuleDict):
    """Modules by number: `merge[16]` has its weights under `merge.16`."""

    def __init__(self, modules: dict[int, nn.Module]) -> None:
        super().__init__({str(number): modules[number] for number in modules})

    def __getitem__(self, number: int | str) -> nn.Module:
        return super().__getitem__(str(number))


@fx.wrap
def downsample_gaussian(images: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Anti-aliased resize of (N, C, H, W) to (N, C, ceil(H / factor), ceil(W / factor)); sigma = factor / 2 pixels."""

    def matrix(size: int, factor: int) -> Tensor:
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


class Entry(nn.Sequential):
    """Lifts the image to the width of a stage: a 3x3 convolution."""

    def __init__(self, in_chans: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU(inplace=True)


class Conv2dNormActivation(nn.Sequential):
    """A convolution with norm and activation."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int = 1, kernel_size: int = 1, with_activation: bool = True
    ) -> None:
        layers: list[nn.Module] = []
        layers.append(
            nn.Conv2d(
                in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2, groups=groups, bias=False
            )
        )
        layers.append(nn.BatchNorm2d(out_channels))
        if with_activation:
            layers.append(nn.SiLU(inplace=True))
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    """Weighs the channels of a map: two 1x1 convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1)
        self.activation = nn.SiLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(y)) * x


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.act(self.norm(self.conv(x)))


class Transition(nn.Sequential):
    """Brings a map to the width of the next stage: a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 32, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.act = nn.SiLU(inplace=True)


class MBConv(nn.Module):
    """Residual block: a 1x1 convolution, a depthwise convolution, a gate and a 1x1 convolution. Given `image`, the map
    grows to its size.
    """

    def __init__(
        self,
        out_channels: int,
        hidden: int,
        block_hidden: int,
        in_channels: int | None = None,
        kernel_size: int = 5,
        p: float | None = None,
        split: int = 1,
    ) -> None:
        super().__init__()
        self.split = split
        self.block = nn.Sequential(
            *([Conv2dNormActivation(in_channels, hidden)] if in_channels is not None else []),
            Conv2dNormActivation(hidden, hidden, groups=hidden, kernel_size=kernel_size),
            SqueezeExcitation(hidden, hidden=block_hidden),
            Conv2dNormActivation(hidden, out_channels, with_activation=False),
        )
        self.stochastic_depth = None
        if p is not None:
            self.stochastic_depth = DropPath(p)

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        y = x
        for block in self.block[: self.split]:
            y = block(y)
        if image is not None:
            y = upsample_nearest(y, image)
        for block in self.block[self.split :]:
            y = block(y)
        if self.stochastic_depth is not None:
            y = self.stochastic_depth(y)
            y = y + x
        return y


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

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.17500000000000002,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 32
        self.head_hidden_size = 1280
        rates = [drop_path_rate * i / 14 for i in range(15)]
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 192, 16: 80, 8: 40, 4: 24, 2: 16, 1: 32}.items()}
        )
        self.features = Numbered(
            {
                6: nn.Sequential(
                    MBConv(192, hidden=672, block_hidden=28, in_channels=192),
                    *[MBConv(192, hidden=1152, block_hidden=48, in_channels=192, p=p) for p in rates[12:15]],
                ),
                7: nn.Sequential(MBConv(320, hidden=1152, block_hidden=48, in_channels=192, kernel_size=3)),
                4: Stage(
                    MBConv(80, hidden=240, block_hidden=10, in_channels=320, kernel_size=3),
                    MBConv(80, hidden=480, block_hidden=20, in_channels=80, kernel_size=3, p=rates[6]),
                    MBConv(80, hidden=480, block_hidden=20, in_channels=80, kernel_size=3, p=rates[7]),
                ),
                5: nn.Sequential(
                    MBConv(112, hidden=480, block_hidden=20, in_channels=80),
                    MBConv(112, hidden=672, block_hidden=28, in_channels=112, p=rates[9]),
                    MBConv(112, hidden=672, block_hidden=28, in_channels=112, p=rates[10]),
                ),
                3: Stage(
                    MBConv(40, hidden=144, block_hidden=6, in_channels=112),
                    MBConv(40, hidden=240, block_hidden=10, in_channels=40, p=rates[4]),
                ),
                2: Stage(
                    MBConv(24, hidden=96, block_hidden=4, in_channels=40, kernel_size=3),
                    MBConv(24, hidden=144, block_hidden=6, in_channels=24, kernel_size=3, p=rates[2]),
                ),
                1: Growing(MBConv(16, hidden=24, block_hidden=8, kernel_size=3, split=0)),
                8: Conv2dNormActivation(32, 1280),
            }
        )
        self.merge = Numbered({16: Merge(80), 8: Merge(40), 4: Merge(24), 2: Merge(16), 1: Merge(32)})
        self.transition = Numbered({1: Transition()})
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(p=drop_rate, inplace=True), nn.Linear(1280, num_classes))
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
        x = self.features[4](x, image, self.entry[16], self.merge[16])
        return self.features[5](x)

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
