"""Top-down GoogLeNet: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of torchvision:googlenet, written by td-compiler 0.2.0 with
    tdc convert torchvision:googlenet

    model = GoogLeNetTD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
   32   1/32   1024       2
   16   1/16    832       5
    8    1/8    480       2
    4    1/4    192       -
    2    1/2     64       -
    1      1     64       -
"""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


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


def upsample_nearest(x: Tensor, image: Tensor) -> Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) of an image by nearest neighbours."""
    return F.interpolate(x, size=image.shape[-2:], mode="nearest")


class Entry(nn.Module):
    """Lifts the image to the width of a stage: a 7x7, a 1x1 and a 3x3 convolution."""

    def __init__(self, in_chans: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 64, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(64, eps=0.001)
        self.conv2 = nn.Conv2d(64, 64, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(64, eps=0.001)
        self.conv3 = nn.Conv2d(64, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, image: Tensor) -> Tensor:
        image = F.relu(self.norm(self.conv(image)))
        image = F.relu(self.norm2(self.conv2(image)))
        return F.relu(self.norm3(self.conv3(image)))


class BasicConv2d(nn.Module):
    """A convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Transition(nn.Module):
    """Brings a map to the width of the next stage: a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return F.relu(self.norm(self.conv(x)))


class Inception(nn.Module):
    """Branches, joined along the channels: a 1x1, a 1x1, a 3x3, a 1x1, a 3x3 and a 1x1 convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        branch1_channels: int,
        branch2_channels: int,
        branch2_hidden: int,
        branch3_channels: int,
        branch3_hidden: int,
    ) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(in_channels, branch1_channels)
        self.branch2 = nn.Sequential(
            BasicConv2d(in_channels, branch2_hidden), BasicConv2d(branch2_hidden, branch2_channels, kernel_size=3)
        )
        self.branch3 = nn.Sequential(
            BasicConv2d(in_channels, branch3_hidden), BasicConv2d(branch3_hidden, branch3_channels, kernel_size=3)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True), BasicConv2d(in_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch1(x)
        z = self.branch2(x)
        u = self.branch3(x)
        return torch.cat([y, z, u, self.branch4(x)], 1)


class GoogLeNetTD(nn.Module):
    """Top-down GoogLeNet: class scores from images (N, C, H, W)."""

    scales = (1, 2, 4, 8, 16, 32)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 832, 16: 512, 8: 256, 4: 192, 2: 64, 1: 64}.items()}
        )
        self.inception5a = Inception(
            832,
            128,
            branch1_channels=256,
            branch2_channels=320,
            branch2_hidden=160,
            branch3_channels=128,
            branch3_hidden=32,
        )
        self.inception5b = Inception(
            832,
            128,
            branch1_channels=384,
            branch2_channels=384,
            branch2_hidden=192,
            branch3_channels=128,
            branch3_hidden=48,
        )
        self.transition = Numbered(
            {16: Transition(1024, 512), 8: Transition(832, 256), 4: Transition(480, 192), 2: Transition(192, 64)}
        )
        self.merge = Numbered({16: Merge(512), 8: Merge(256), 4: Merge(192), 2: Merge(64), 1: Merge(64)})
        self.inception4a = Inception(
            512,
            64,
            branch1_channels=192,
            branch2_channels=208,
            branch2_hidden=96,
            branch3_channels=48,
            branch3_hidden=16,
        )
        self.inception4b = Inception(
            512,
            64,
            branch1_channels=160,
            branch2_channels=224,
            branch2_hidden=112,
            branch3_channels=64,
            branch3_hidden=24,
        )
        self.inception4c = Inception(
            512,
            64,
            branch1_channels=128,
            branch2_channels=256,
            branch2_hidden=128,
            branch3_channels=64,
            branch3_hidden=24,
        )
        self.inception4d = Inception(
            512,
            64,
            branch1_channels=112,
            branch2_channels=288,
            branch2_hidden=144,
            branch3_channels=64,
            branch3_hidden=32,
        )
        self.inception4e = Inception(
            528,
            128,
            branch1_channels=256,
            branch2_channels=320,
            branch2_hidden=160,
            branch3_channels=128,
            branch3_hidden=32,
        )
        self.inception3a = Inception(
            256,
            32,
            branch1_channels=64,
            branch2_channels=128,
            branch2_hidden=96,
            branch3_channels=32,
            branch3_hidden=16,
        )
        self.inception3b = Inception(
            256,
            64,
            branch1_channels=128,
            branch2_channels=192,
            branch2_hidden=128,
            branch3_channels=96,
            branch3_hidden=32,
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(p=drop_rate)
        self.reset_classifier(num_classes)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.fc = nn.Linear(64, num_classes) if num_classes else nn.Identity()
        init_weights(self.fc)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage32(self, image: Tensor) -> Tensor:
        x = self.inception5a(self.entry[32](image))
        return self.inception5b(x)

    def stage16(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[16](x)
        x = self.merge[16](upsample_nearest(x, image), self.entry[16](image))
        x = self.inception4a(x)
        x = self.inception4b(x)
        x = self.inception4c(x)
        x = self.inception4d(x)
        return self.inception4e(x)

    def stage8(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[8](x)
        x = self.merge[8](upsample_nearest(x, image), self.entry[8](image))
        x = self.inception3a(x)
        return self.inception3b(x)

    def stage4(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[4](x)
        return self.merge[4](upsample_nearest(x, image), self.entry[4](image))

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
        x = self.dropout(torch.flatten(self.avgpool(x), 1))
        return x if pre_logits else self.fc(x)

    def forward_pyramid(self, levels: list[Tensor]) -> Tensor:
        """Class scores from the images at every scale."""
        return self.forward_head(self.stage_maps(levels)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Class scores from images (N, C, H, W)."""
        return self.forward_head(self.forward_features(images))


def init_weights(module: nn.Module) -> None:
    """Give a layer the first values that the source network's have."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.01)
