"""Top-down ConvNeXt: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of torchvision:convnext_tiny, written by td-compiler 0.2.0 with
    tdc convert torchvision:convnext_tiny

    model = ConvNeXtTinyTD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
   32   1/32    768       4
   16   1/16    384      10
    8    1/8    192       4
    4    1/4     96       3
    1      1     96       -
"""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class EvenConv2d(nn.Conv2d):
    """A convolution that keeps its map's size: a side of even reach pads one more zero behind, as "same" does."""

    def forward(self, x: Tensor) -> Tensor:
        down, across = (d * (k - 1) % 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return super().forward(F.pad(x, (0, across, 0, down)))


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


class LayerNorm2d(nn.Module):
    """Layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, (self.channels,), weight=self.weight, bias=self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


class Entry(nn.Sequential):
    """Lifts the image to the width of a stage: a 4x4 convolution."""

    def __init__(self, in_chans: int, out_channels: int) -> None:
        super().__init__()
        self.conv = EvenConv2d(in_chans, out_channels, kernel_size=4, padding=1)
        self.norm = LayerNorm2d(out_channels)


class Permute(nn.Module):
    """A layer without weights: permute."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(x, self.dims)


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(2 * channels)
        self.act = nn.GELU()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.conv(self.act(self.norm(x)))


class ConvFirstMerge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(192, 96, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(96, eps=1e-6)
        self.act = nn.GELU()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.act(x.permute(0, 3, 1, 2))


class Flatten(nn.Module):
    """A layer without weights: flatten."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)


class CNBlock(nn.Module):
    """Residual block: a 7x7 depthwise convolution and two linear layers. Given `image`, the map grows to its size."""

    def __init__(self, in_channels: int, out_channels: int, p: float) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((out_channels, 1, 1), 1e-6))
        self.block = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, kernel_size=7, padding=3, groups=in_channels),
            Permute(dims=[0, 2, 3, 1]),
            nn.LayerNorm(in_channels, eps=1e-6),
            nn.Linear(in_channels, 4 * out_channels),
            nn.GELU(),
            nn.Linear(4 * out_channels, out_channels),
            Permute(dims=[0, 3, 1, 2]),
        )
        self.stochastic_depth = DropPath(p)
        self.projection = None
        if in_channels != out_channels:
            self.projection = nn.ModuleDict(
                {"conv": nn.Conv2d(192, 96, kernel_size=1), "norm": nn.LayerNorm(96, eps=1e-6)}
            )

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        y = x if image is None else upsample_nearest(x, image)
        y = self.stochastic_depth(self.layer_scale * self.block(y))
        if self.projection is not None:
            x = self.projection.conv(x)
            x = x.permute(0, 2, 3, 1)
            x = self.projection.norm(x)
            x = x.permute(0, 3, 1, 2)
        if image is not None:
            x = upsample_nearest(x, image)
        return y + x


class Growing(nn.Sequential):
    """Layers between which the map grows to the image's size."""

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        first, *blocks = self
        x = first(x)
        x = upsample_nearest(x, image)
        for block in blocks:
            x = block(x)
        return x


class Stage(nn.Sequential):
    """Blocks of one stage. The map grows to the image's size and is merged with the image's entry on the way."""

    def forward(self, x: Tensor, image: Tensor, entry: nn.Module, merge: nn.Module) -> Tensor:
        first, *blocks = self
        x = first(x, image)
        x = merge(x, entry(image))
        for block in blocks:
            x = block(x)
        return x


class ConvNeXtTinyTD(nn.Module):
    """Top-down ConvNeXt: class scores from images (N, C, H, W)."""

    scales = (1, 4, 8, 16, 32)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 96
        rates = [drop_path_rate * i / 17 for i in range(18)]
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 768, 16: 384, 8: 192, 4: 96, 1: 96}.items()}
        )
        self.features = Numbered(
            {
                6: nn.Sequential(LayerNorm2d(768), EvenConv2d(768, 768, kernel_size=2)),
                7: nn.Sequential(*[CNBlock(768, 768, p=p) for p in rates[15:18]]),
                4: Growing(LayerNorm2d(768), EvenConv2d(768, 384, kernel_size=2)),
                5: nn.Sequential(*[CNBlock(384, 384, p=p) for p in rates[6:15]]),
                2: Growing(LayerNorm2d(384), EvenConv2d(384, 192, kernel_size=2)),
                3: nn.Sequential(*[CNBlock(192, 192, p=p) for p in rates[3:6]]),
                1: Stage(CNBlock(192, 96, p=rates[0]), CNBlock(96, 96, p=rates[1]), CNBlock(96, 96, p=rates[2])),
            }
        )
        self.merge = Numbered({16: Merge(384), 8: Merge(192), 4: ConvFirstMerge(), 1: ConvFirstMerge()})
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(LayerNorm2d(96), Flatten(), nn.Linear(96, num_classes))
        if not num_classes:
            self.reset_classifier(0)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.classifier[2]

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.classifier[2] = nn.Linear(96, num_classes) if num_classes else nn.Identity()
        init_weights(self.classifier[2])

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage32(self, image: Tensor) -> Tensor:
        x = self.entry[32](image)
        for i in range(6, 8):
            x = self.features[i](x)
        return x

    def stage16(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.features[4](x, image)
        x = self.merge[16](x, self.entry[16](image))
        return self.features[5](x)

    def stage8(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.features[2](x, image)
        x = self.merge[8](x, self.entry[8](image))
        return self.features[3](x)

    def stage4(self, x: Tensor, image: Tensor) -> Tensor:
        return self.features[1](x, image, self.entry[4], self.merge[4])

    def stage1(self, x: Tensor, image: Tensor) -> Tensor:
        return self.merge[1](upsample_nearest(x, image), self.entry[1](image))

    def stage_maps(self, levels: list[Tensor]) -> list[Tensor]:
        """The map after every stage, coarse to fine, from the images at every scale."""
        image1, image4, image8, image16, image32 = levels
        x32 = self.stage32(image32)
        x16 = self.stage16(x32, image16)
        x8 = self.stage8(x16, image8)
        x4 = self.stage4(x8, image4)
        x1 = self.stage1(x4, image1)
        return [x32, x16, x8, x4, x1]

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, of the images' size."""
        return self.stage_maps(self.pyramid(images))[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores from the last map; `pre_logits`: what the classifier reads."""
        x = self.avgpool(x)
        return self.classifier[:2](x) if pre_logits else self.classifier(x)

    def forward_pyramid(self, levels: list[Tensor]) -> Tensor:
        """Class scores from the images at every scale."""
        return self.forward_head(self.stage_maps(levels)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Class scores from images (N, C, H, W)."""
        return self.forward_head(self.forward_features(images))


def init_weights(module: nn.Module) -> None:
    """Give a layer the first values that the source network's have."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
