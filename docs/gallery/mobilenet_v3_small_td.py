"""Top-down MobileNetV3: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of torchvision:mobilenet_v3_small, written by td-compiler 0.2.0
with
    tdc convert torchvision:mobilenet_v3_small

    model = MobileNetV3SmallTD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
   32   1/32     96       3
   16   1/16     48       5
    8    1/8     24       2
    4    1/4     16       1
    2    1/2     16       -
    1      1     16       -
"""

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
        self.norm = nn.BatchNorm2d(out_channels, eps=0.001, momentum=0.01)
        self.act = nn.Hardswish(inplace=True)


class Conv2dNormActivation(nn.Sequential):
    """A convolution with norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation: type[nn.Module] | None = None,
        groups: int = 1,
        kernel_size: int = 1,
    ) -> None:
        layers: list[nn.Module] = []
        layers.append(
            nn.Conv2d(
                in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2, groups=groups, bias=False
            )
        )
        layers.append(nn.BatchNorm2d(out_channels, eps=0.001, momentum=0.01))
        if activation is not None:
            layers.append(activation(inplace=True))
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    """Weighs the channels of a map: two 1x1 convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1)
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(y)) * x


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self, channels: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=0.001, momentum=0.01)
        self.act = activation(inplace=True)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.act(self.norm(self.conv(x)))


class InvertedResidual(nn.Module):
    """Residual block: a 1x1 convolution, a depthwise convolution, a gate and a 1x1 convolution. Given `image`, the map
    grows to its size.
    """

    def __init__(
        self,
        out_channels: int,
        hidden: int,
        in_channels: int | None = None,
        activation: type[nn.Module] = nn.Hardswish,
        block_hidden: int | None = None,
        kernel_size: int = 5,
        split: int = 1,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.split = split
        self.residual = residual
        self.block = nn.Sequential(
            *([Conv2dNormActivation(in_channels, hidden, activation=activation)] if in_channels is not None else []),
            Conv2dNormActivation(hidden, hidden, activation=activation, groups=hidden, kernel_size=kernel_size),
            *([SqueezeExcitation(hidden, hidden=block_hidden)] if block_hidden is not None else []),
            Conv2dNormActivation(hidden, out_channels),
        )

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        y = x
        for block in self.block[: self.split]:
            y = block(y)
        if image is not None:
            y = upsample_nearest(y, image)
        for block in self.block[self.split :]:
            y = block(y)
        return y + x if self.residual else y


class MobileNetV3SmallTD(nn.Module):
    """Top-down MobileNetV3: class scores from images (N, C, H, W)."""

    scales = (1, 2, 4, 8, 16, 32)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 16
        self.head_hidden_size = 1024
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 96, 16: 40, 8: 24, 4: 16, 2: 16, 1: 16}.items()}
        )
        self.features = Numbered(
            {
                9: InvertedResidual(96, hidden=288, in_channels=96, block_hidden=72, residual=False),
                10: InvertedResidual(96, hidden=576, in_channels=96, block_hidden=144),
                11: InvertedResidual(96, hidden=576, in_channels=96, block_hidden=144),
                4: InvertedResidual(40, hidden=96, in_channels=96, block_hidden=24, residual=False),
                5: InvertedResidual(40, hidden=240, in_channels=40, block_hidden=64),
                6: InvertedResidual(40, hidden=240, in_channels=40, block_hidden=64),
                7: InvertedResidual(48, hidden=120, in_channels=40, block_hidden=32, residual=False),
                8: InvertedResidual(48, hidden=144, in_channels=48, block_hidden=40),
                2: InvertedResidual(24, hidden=72, in_channels=48, activation=nn.ReLU, kernel_size=3, residual=False),
                3: InvertedResidual(24, hidden=88, in_channels=24, activation=nn.ReLU, kernel_size=3),
                1: InvertedResidual(
                    16, hidden=24, activation=nn.ReLU, block_hidden=8, kernel_size=3, split=0, residual=False
                ),
                12: Conv2dNormActivation(16, 576, activation=nn.Hardswish),
            }
        )
        self.merge = Numbered(
            {16: Merge(40, activation=nn.Hardswish), 8: Merge(24), 4: Merge(16), 2: Merge(16), 1: Merge(16)}
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(576, 1024),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=drop_rate, inplace=True),
            nn.Linear(1024, num_classes),
        )
        if not num_classes:
            self.reset_classifier(0)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.classifier[3]

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.classifier[3] = nn.Linear(1024, num_classes) if num_classes else nn.Identity()
        init_weights(self.classifier[3])

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage32(self, image: Tensor) -> Tensor:
        x = self.entry[32](image)
        for i in range(9, 12):
            x = self.features[i](x)
        return x

    def stage16(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.features[4](x, image)
        x = self.merge[16](x, self.entry[16](image))
        for i in range(5, 9):
            x = self.features[i](x)
        return x

    def stage8(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.features[2](x, image)
        x = self.merge[8](x, self.entry[8](image))
        return self.features[3](x)

    def stage4(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.features[1](x, image)
        return self.merge[4](x, self.entry[4](image))

    def stage2(self, x: Tensor, image: Tensor) -> Tensor:
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
        x = self.features[12](x)
        x = torch.flatten(self.avgpool(x), 1)
        return self.classifier[:3](x) if pre_logits else self.classifier(x)

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
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
