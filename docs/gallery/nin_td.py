"""Top-down PlainNet: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of zoo:nin, written by td-compiler 0.2.0 with
    tdc convert zoo:nin

    model = NinTD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
    4    1/4    192       2
    2    1/2    192       3
    1      1     96       3
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


class ConvUnit(nn.Sequential):
    """A convolution with norm and activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2)
        self.norm = nn.BatchNorm2d(out_channels, eps=0.001, momentum=0.01)
        self.act = nn.ReLU()


class Entry(nn.Sequential):
    """Lifts the image to the width of a stage: a 5x5 convolution."""

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 192, kernel_size=5, padding=2)
        self.norm = nn.BatchNorm2d(192, eps=0.001, momentum=0.01)
        self.act = nn.ReLU()


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(384, 192, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(192, eps=0.001, momentum=0.01)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.act(self.norm(self.conv(x)))


class NinTD(nn.Module):
    """Top-down PlainNet: class scores from images (N, C, H, W)."""

    scales = (1, 2, 4)

    def __init__(self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 96
        self.features = Numbered(
            {
                10: ConvUnit(in_chans, 192, kernel_size=3),
                11: ConvUnit(192, 192),
                9: nn.Dropout(p=drop_rate),
                5: ConvUnit(192, 192, kernel_size=5),
                6: ConvUnit(192, 192),
                7: ConvUnit(192, 192),
                4: nn.Dropout(p=drop_rate),
                0: ConvUnit(192, 192, kernel_size=5),
                1: ConvUnit(192, 160),
                2: ConvUnit(160, 96),
            }
        )
        self.entry = Numbered({2: Entry(in_chans), 1: Entry(in_chans)})
        self.merge = Numbered({2: Merge(), 1: Merge()})
        self.head = ConvUnit(96, num_classes)
        self.pool = nn.AdaptiveAvgPool2d(1)
        if not num_classes:
            self.reset_classifier(0)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.head.conv

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.head.conv = nn.Conv2d(96, num_classes, kernel_size=1) if num_classes else nn.Identity()
        init_weights(self.head.conv)
        self.head.norm = nn.BatchNorm2d(num_classes, eps=0.001, momentum=0.01) if num_classes else nn.Identity()

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage4(self, image: Tensor) -> Tensor:
        x = self.features[10](image)
        return self.features[11](x)

    def stage2(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.merge[2](upsample_nearest(x, image), self.entry[2](image))
        for i in (9, 5, 6, 7):
            x = self.features[i](x)
        return x

    def stage1(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.merge[1](upsample_nearest(x, image), self.entry[1](image))
        for i in (4, 0, 1, 2):
            x = self.features[i](x)
        return x

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
        if pre_logits:
            return x
        x = self.head(x)
        return torch.flatten(self.pool(x), 1)

    def forward_pyramid(self, levels: list[Tensor]) -> Tensor:
        """Class scores from the images at every scale."""
        return self.forward_head(self.stage_maps(levels)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Class scores from images (N, C, H, W)."""
        return self.forward_head(self.forward_features(images))


def init_weights(module: nn.Module) -> None:
    """Give a layer the first values that the source network's have."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
