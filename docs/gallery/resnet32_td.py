"""Top-down PreActResNet: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of zoo:resnet32, written by td-compiler 0.2.0 with
    tdc convert zoo:resnet32

    model = Resnet32TD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
    4    1/4     64       5
    2    1/2     32       5
    1      1     16       5
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
        self.conv = nn.Conv2d(in_chans, out_channels, kernel_size=3, padding=1)


class PreActBlock(nn.Module):
    """Residual block: two 3x3 convolutions. Given `image`, the map grows to its size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.projection = None
        if in_channels != out_channels:
            self.projection = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        y = self.act1(self.norm1(x))
        if self.projection is not None:
            x = self.projection(y)
        if image is not None:
            y = upsample_nearest(y, image)
        y = self.act2(self.norm2(self.conv1(y)))
        y = self.conv2(y)
        if image is not None:
            x = upsample_nearest(x, image)
        return y + x


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2 * channels)
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.conv(self.act(self.norm(x)))


class Stage(nn.Sequential):
    """Blocks of one stage. The map grows to the image's size and is merged with the image's entry on the way."""

    def forward(self, x: Tensor, image: Tensor, entry: nn.Module, merge: nn.Module) -> Tensor:
        first, *blocks = self
        x = first(x, image)
        x = merge(x, entry(image))
        for block in blocks:
            x = block(x)
        return x


class Resnet32TD(nn.Module):
    """Top-down PreActResNet: class scores from images (N, C, H, W)."""

    scales = (1, 2, 4)

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 16
        self.entry = Numbered({4: Entry(in_chans, 64), 2: Entry(in_chans, 32), 1: Entry(in_chans, 16)})
        self.group3 = nn.Sequential(*[PreActBlock(64, 64) for _ in range(5)])
        self.group2 = Stage(PreActBlock(64, 32), *[PreActBlock(32, 32) for _ in range(4)])
        self.merge = Numbered({2: Merge(32), 1: Merge(16)})
        self.group1 = Stage(PreActBlock(32, 16), *[PreActBlock(16, 16) for _ in range(4)])
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reset_classifier(num_classes)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.fc = nn.Linear(16, num_classes) if num_classes else nn.Identity()
        init_weights(self.fc)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage4(self, image: Tensor) -> Tensor:
        return self.group3(self.entry[4](image))

    def stage2(self, x: Tensor, image: Tensor) -> Tensor:
        return self.group2(x, image, self.entry[2], self.merge[2])

    def stage1(self, x: Tensor, image: Tensor) -> Tensor:
        return self.group1(x, image, self.entry[1], self.merge[1])

    def stage_maps(self, levels: list[Tensor]) -> list[Tensor]:
        """The map after every stage, coarse to fine, from the images at every scale."""
        image1, image2, image4 = levels
        x4 = self.stage4(image4)
        x2 = self.stage2(x4, image2)
        x1 = self.stage1(x2, image1)
        return [x4, x2, x1]

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, of the images' size."""
        return self.stage_maps(self.pyramid(images))[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores from the last map; `pre_logits`: what the classifier reads."""
        x = self.pool(self.act(self.norm(x)))
        x = torch.flatten(x, 1)
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
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(module.bias)
