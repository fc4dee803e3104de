"""Top-down RegNet: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of timm:regnety_008, written by td-compiler 0.2.0 with
    tdc convert timm:regnety_008

    model = RegNetY008TD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
   32   1/32    768       2
   16   1/16    320       8
    8    1/8    128       3
    4    1/4     64       1
    2    1/2     32       -
    1      1     32       -
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


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
        self.act = nn.ReLU(inplace=True)


class ConvNormAct(nn.Sequential):
    """A convolution with norm and activation."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int = 1, kernel_size: int = 1, bn_act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.bn_act = None
        if bn_act:
            self.bn_act = nn.ReLU(inplace=True)


class SEModule(nn.Module):
    """Weighs the channels of a map: two 1x1 convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * self.fc2(y).sigmoid()


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.act(self.norm(self.conv(x)))


class Transition(nn.Sequential):
    """Brings a map to the width of the next stage: a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 32, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.act = nn.ReLU(inplace=True)


class Bottleneck(nn.Module):
    """Residual block: a 1x1 convolution, a 3x3 convolution, a gate and a 1x1 convolution. Given `image`, the map grows
    to its size.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels)
        self.conv2 = ConvNormAct(out_channels, out_channels, groups=out_channels // 16, kernel_size=3)
        self.se = SEModule(out_channels, hidden=hidden)
        self.conv3 = ConvNormAct(out_channels, out_channels, bn_act=False)
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = ConvNormAct(in_channels, out_channels, bn_act=False)
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        y = self.conv1(x)
        if image is not None:
            y = upsample_nearest(y, image)
        y = self.conv3(self.se(self.conv2(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        if image is not None:
            x = upsample_nearest(x, image)
        return self.act3(y + x)


class RegStage(nn.Module):
    """A residual block. The map grows to the size of `image`."""

    def __init__(self) -> None:
        super().__init__()
        self.b1 = Bottleneck(128, 64, hidden=8)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return self.b1(x, image)


class Stage(nn.Sequential):
    """Blocks of one stage. The map grows to the image's size and is merged with the image's entry on the way."""

    def forward(self, x: Tensor, image: Tensor, entry: nn.Module, merge: nn.Module) -> Tensor:
        first, *blocks = self
        x = first(x, image)
        x = merge(x, entry(image))
        for block in blocks:
            x = block(x)
        return x


class RegNetY008TD(nn.Module):
    """Top-down RegNet: class scores from images (N, C, H, W)."""

    scales = (1, 2, 4, 8, 16, 32)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 32
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 768, 16: 320, 8: 128, 4: 64, 2: 32, 1: 32}.items()}
        )
        self.s4 = nn.Sequential(
            OrderedDict([("b1", Bottleneck(768, 768, hidden=80)), ("b2", Bottleneck(768, 768, hidden=192))])
        )
        self.s3 = Stage(
            OrderedDict(
                [
                    ("b1", Bottleneck(768, 320, hidden=32)),
                    ("b2", Bottleneck(320, 320, hidden=80)),
                    ("b3", Bottleneck(320, 320, hidden=80)),
                    ("b4", Bottleneck(320, 320, hidden=80)),
                    ("b5", Bottleneck(320, 320, hidden=80)),
                    ("b6", Bottleneck(320, 320, hidden=80)),
                    ("b7", Bottleneck(320, 320, hidden=80)),
                    ("b8", Bottleneck(320, 320, hidden=80)),
                ]
            )
        )
        self.merge = Numbered({16: Merge(320), 8: Merge(128), 4: Merge(64), 2: Merge(32), 1: Merge(32)})
        self.s2 = Stage(
            OrderedDict(
                [
                    ("b1", Bottleneck(320, 128, hidden=16)),
                    ("b2", Bottleneck(128, 128, hidden=32)),
                    ("b3", Bottleneck(128, 128, hidden=32)),
                ]
            )
        )
        self.s1 = RegStage()
        self.transition = Numbered({2: Transition()})
        self.head = nn.ModuleDict(
            {
                "global_pool": nn.ModuleDict({"pool": nn.AdaptiveAvgPool2d(1)}),
                "drop": nn.Dropout(p=drop_rate),
                "fc": nn.Linear(32, num_classes),
            }
        )
        if not num_classes:
            self.reset_classifier(0)
        for name, module in self.named_modules():
            init_weights(module, name)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.head.fc = nn.Linear(32, num_classes) if num_classes else nn.Identity()
        init_weights(self.head.fc, "head.fc")

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage32(self, image: Tensor) -> Tensor:
        return self.s4(self.entry[32](image))

    def stage16(self, x: Tensor, image: Tensor) -> Tensor:
        return self.s3(x, image, self.entry[16], self.merge[16])

    def stage8(self, x: Tensor, image: Tensor) -> Tensor:
        return self.s2(x, image, self.entry[8], self.merge[8])

    def stage4(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.s1(x, image)
        return self.merge[4](x, self.entry[4](image))

    def stage2(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[2](x)
        return self.merge[2](upsample_nearest(x, image), self.entry[2](image))

    def stage1(self, x: Tensor, image: Tensor) -> Tensor:
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
        x = self.head.drop(torch.flatten(self.head.global_pool.pool(x), 1))
        return x if pre_logits else self.head.fc(x)

    def forward_pyramid(self, levels: list[Tensor]) -> Tensor:
        """Class scores from the images at every scale."""
        return self.forward_head(self.stage_maps(levels)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Class scores from images (N, C, H, W)."""
        return self.forward_head(self.forward_features(images))


def init_weights(module: nn.Module, name: str) -> None:
    """Give a layer the first values that the source network's have."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / module.weight[:, 0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.BatchNorm2d) and name.endswith("conv3.bn"):
        nn.init.zeros_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
