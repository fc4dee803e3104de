"""Top-down DLA: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of timm:dla34, written by td-compiler 0.2.0 with
    tdc convert timm:dla34

    model = DLA34TD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
   32   1/32    512       1
   16   1/16    256       1
    8    1/8    128       1
    4    1/4     64       1
    2    1/2     32       -
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
    """Lifts the image to the width of a stage: a 7x7, a 3x3 and a 3x3 convolution."""

    def __init__(self, in_chans: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 16, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(16, 16, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(16, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.act3 = nn.ReLU(inplace=True)


class DlaBasic(nn.Module):
    """Residual block: two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + x
        return self.relu(y)


class GrowingDlaBasic(nn.Module):
    """Residual block: two 3x3 convolutions. Given `image`, the map grows to its size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, x2: Tensor, image: Tensor | None = None) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if image is not None:
            x2 = upsample_nearest(x2, image)
        return self.relu(x + x2)


class DlaRoot(nn.Sequential):
    """A 1x1 convolution with norm and activation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.act(self.norm(self.conv(x)))


class Transition(nn.Sequential):
    """Brings a map to the width of the next stage: a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()


class SelectAdaptivePool2d(nn.Sequential):
    """Select adaptive pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)


class DlaTree(nn.Module):
    """A 1x1 convolution, two residual blocks and a 1x1 convolution. Given `image`, the map grows to its size."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.tree1 = GrowingDlaBasic(in_channels, out_channels)
        self.tree2 = DlaBasic(out_channels)
        self.root = DlaRoot(hidden, out_channels)

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        shortcut = self.project(x)
        if image is not None:
            x = upsample_nearest(x, image)
            y = self.tree1(x, shortcut, image)
        else:
            y = self.tree1(x, shortcut)
        z = self.tree2(y)
        z = torch.cat([z, y], 1) if image is not None else torch.cat([z, y, x], 1)
        return self.root(z)


class DlaTreeWithoutProject(nn.Module):
    """Branches, joined along the channels: two residual blocks and a 1x1 convolution. The map grows to the size of
    `image`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tree1 = DlaBasic(channels)
        self.tree2 = DlaBasic(channels)
        self.root = DlaRoot(5 * channels, channels)

    def forward(self, x: Tensor, x2: Tensor, image: Tensor) -> Tensor:
        y = self.tree1(x)
        z = self.tree2(y)
        z = torch.cat([z, y, upsample_nearest(x2, image), x], 1)
        return self.root(z)


class Level4DlaTree(nn.Module):
    """Dla tree. The map grows to the size of `image`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tree1 = DlaTree(2 * channels, channels, hidden=2 * channels)
        self.tree2 = DlaTreeWithoutProject(channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        y = self.tree1(x, image)
        return self.tree2(y, x, image)


class DLA34TD(nn.Module):
    """Top-down DLA: class scores from images (N, C, H, W)."""

    scales = (1, 2, 4, 8, 16, 32)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 16
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 512, 16: 256, 8: 128, 4: 64, 2: 32, 1: 16}.items()}
        )
        self.level5 = DlaTree(512, 512, hidden=1536)
        self.level4 = Level4DlaTree(256)
        self.merge = Numbered({16: Merge(256), 8: Merge(128), 4: Merge(64), 2: Merge(32), 1: Merge(16)})
        self.level3 = Level4DlaTree(128)
        self.level2 = DlaTree(128, 64, hidden=128)
        self.transition = Numbered({2: Transition(32), 1: Transition(16)})
        self.global_pool = SelectAdaptivePool2d()
        self.head_drop = nn.Dropout(p=drop_rate)
        self.reset_classifier(num_classes)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.fc = nn.Conv2d(16, num_classes, kernel_size=1) if num_classes else nn.Identity()
        init_weights(self.fc)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage32(self, image: Tensor) -> Tensor:
        return self.level5(self.entry[32](image))

    def stage16(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.level4(x, image)
        return self.merge[16](x, self.entry[16](image))

    def stage8(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.level3(x, image)
        return self.merge[8](x, self.entry[8](image))

    def stage4(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.level2(x, image)
        return self.merge[4](x, self.entry[4](image))

    def stage2(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[2](x)
        return self.merge[2](upsample_nearest(x, image), self.entry[2](image))

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
        x = self.global_pool(x)
        x = self.head_drop(x)
        return x if pre_logits else torch.flatten(self.fc(x), 1)

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
