"""Top-down DenseNet: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of torchvision:densenet121, written by td-compiler 0.2.0 with
    tdc convert torchvision:densenet121

    model = DenseNet121TD()
    model.load_state_dict(state)  # of the converted network
    scores = model(images)  # images (N, 3, H, W)

stage  scale  width  blocks
   32   1/32   1024       1
   16   1/16    512       2
    8    1/8    256       2
    4    1/4    128       2
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


class Entry(nn.Sequential):
    """Lifts the image to the width of a stage: a 7x7 convolution."""

    def __init__(self, in_chans: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_channels, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)


class DenseLayer(nn.Sequential):
    """A 1x1 and a 3x3 convolution with norm and activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 128, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(128)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(128, 32, kernel_size=3, padding=1, bias=False)


class Transition(nn.Sequential):
    """Brings a map to the width of the next stage: a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, act: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.act = None
        if act:
            self.act = nn.ReLU(inplace=True)
        self.relu = None
        if not act:
            self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)


class Merge(nn.Module):
    """Joins the map x and the image's entry e: a 3x3 convolution of [x + e, e]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2 * channels)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.conv(self.act(self.norm(x)))


class DenseBlock(nn.Module):
    """Dense block: every layer reads the maps of all before it."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        for i in range(depth):
            self.add_module(f"denselayer{i + 1}", DenseLayer(channels + i * 32))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.children():
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


class DenseNet121TD(nn.Module):
    """Top-down DenseNet: class scores from images (N, C, H, W)."""

    scales = (1, 2, 4, 8, 16, 32)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 512, 16: 256, 8: 128, 4: 64, 2: 64, 1: 64}.items()}
        )
        self.features = nn.ModuleDict(
            {
                "denseblock4": DenseBlock(512, depth=16),
                "denseblock3": DenseBlock(256, depth=24),
                "transition3": Transition(1024, 512, act=False),
                "denseblock2": DenseBlock(128, depth=12),
                "transition2": Transition(512, 256, act=False),
                "denseblock1": DenseBlock(64, depth=6),
                "transition1": Transition(256, 128, act=False),
                "norm5": nn.BatchNorm2d(64),
            }
        )
        self.transition = Numbered(
            {16: Transition(1024, 256), 8: Transition(512, 128), 4: Transition(256, 64), 2: Transition(128, 64)}
        )
        self.merge = Numbered({16: Merge(256), 8: Merge(128), 4: Merge(64), 2: Merge(64), 1: Merge(64)})
        self.reset_classifier(num_classes)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.classifier = nn.Linear(64, num_classes) if num_classes else nn.Identity()
        init_weights(self.classifier)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The images at every scale, finest first."""
        return [images, *(downsample_gaussian(images, scale) for scale in self.scales[1:])]

    def stage32(self, image: Tensor) -> Tensor:
        return self.features.denseblock4(self.entry[32](image))

    def stage16(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[16](x)
        x = self.merge[16](upsample_nearest(x, image), self.entry[16](image))
        x = self.features.denseblock3(x)
        return self.features.transition3(x)

    def stage8(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[8](x)
        x = self.merge[8](upsample_nearest(x, image), self.entry[8](image))
        x = self.features.denseblock2(x)
        return self.features.transition2(x)

    def stage4(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[4](x)
        x = self.merge[4](upsample_nearest(x, image), self.entry[4](image))
        x = self.features.denseblock1(x)
        return self.features.transition1(x)

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
        x = F.adaptive_avg_pool2d(F.relu(self.features.norm5(x)), (1, 1))
        x = torch.flatten(x, 1)
        return x if pre_logits else self.classifier(x)

    def forward_pyramid(self, levels: list[Tensor]) -> Tensor:
        """Class scores from the images at every scale."""
        return self.forward_head(self.stage_maps(levels)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Class scores from images (N, C, H, W)."""
        return self.forward_head(self.forward_features(images))


def init_weights(module: nn.Module) -> None:
    """Give a layer the first values that the source network's have."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
