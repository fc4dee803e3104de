"""Top-down DenseNet: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of torchvision:densenet121, written by td-compiler 0.1.0 with
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


def upsample_nearest(x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) of an image by nearest neighbours."""
    return F.interpolate(x, size=image.shape[-2:], mode="nearest")


class Entry(nn.Module):
    """Lifts an image to the width of its stage: `entry.32` and 5 more."""

    def __init__(self, in_chans: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_channels, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(image)))


class DenseLayer(nn.Module):
    """`features.denseblock4.denselayer1` and 57 more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 128, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(128)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(128, 32, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(x)))
        return self.conv2(self.relu2(self.norm2(x)))


class Transition(nn.Module):
    """Brings a map to the width of the next stage: `transition.16` and 3 more."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.norm(x)))


class Merge(nn.Module):
    """Joins the map so far and the entry's map e: `merge.16` and 4 more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2 * channels)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.conv(self.act(self.norm(x)))


class Transition2(nn.Module):
    """`features.transition3` and 2 more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.relu(self.norm(x)))


class DenseBlock(nn.Module):
    """`features.denseblock4`."""

    def __init__(self) -> None:
        super().__init__()
        self.denselayer1 = DenseLayer(512)
        self.denselayer2 = DenseLayer(544)
        self.denselayer3 = DenseLayer(576)
        self.denselayer4 = DenseLayer(608)
        self.denselayer5 = DenseLayer(640)
        self.denselayer6 = DenseLayer(672)
        self.denselayer7 = DenseLayer(704)
        self.denselayer8 = DenseLayer(736)
        self.denselayer9 = DenseLayer(768)
        self.denselayer10 = DenseLayer(800)
        self.denselayer11 = DenseLayer(832)
        self.denselayer12 = DenseLayer(864)
        self.denselayer13 = DenseLayer(896)
        self.denselayer14 = DenseLayer(928)
        self.denselayer15 = DenseLayer(960)
        self.denselayer16 = DenseLayer(992)

    def forward(self, x: Tensor) -> Tensor:
        y = self.denselayer1(torch.cat([x], 1))
        z = torch.cat([x, y], 1)
        z = self.denselayer2(z)
        u = torch.cat([x, y, z], 1)
        u = self.denselayer3(u)
        v = torch.cat([x, y, z, u], 1)
        v = self.denselayer4(v)
        w = torch.cat([x, y, z, u, v], 1)
        w = self.denselayer5(w)
        y2 = torch.cat([x, y, z, u, v, w], 1)
        y2 = self.denselayer6(y2)
        y3 = torch.cat([x, y, z, u, v, w, y2], 1)
        y3 = self.denselayer7(y3)
        y4 = torch.cat([x, y, z, u, v, w, y2, y3], 1)
        y4 = self.denselayer8(y4)
        y5 = torch.cat([x, y, z, u, v, w, y2, y3, y4], 1)
        y5 = self.denselayer9(y5)
        y6 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5], 1)
        y6 = self.denselayer10(y6)
        y7 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6], 1)
        y7 = self.denselayer11(y7)
        y8 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7], 1)
        y8 = self.denselayer12(y8)
        y9 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8], 1)
        y9 = self.denselayer13(y9)
        y10 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9], 1)
        y10 = self.denselayer14(y10)
        y11 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10], 1)
        y11 = self.denselayer15(y11)
        y12 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11], 1)
        y12 = self.denselayer16(y12)
        return torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12], 1)


class DenseBlock2(nn.Module):
    """`features.denseblock3`."""

    def __init__(self) -> None:
        super().__init__()
        self.denselayer1 = DenseLayer(256)
        self.denselayer2 = DenseLayer(288)
        self.denselayer3 = DenseLayer(320)
        self.denselayer4 = DenseLayer(352)
        self.denselayer5 = DenseLayer(384)
        self.denselayer6 = DenseLayer(416)
        self.denselayer7 = DenseLayer(448)
        self.denselayer8 = DenseLayer(480)
        self.denselayer9 = DenseLayer(512)
        self.denselayer10 = DenseLayer(544)
        self.denselayer11 = DenseLayer(576)
        self.denselayer12 = DenseLayer(608)
        self.denselayer13 = DenseLayer(640)
        self.denselayer14 = DenseLayer(672)
        self.denselayer15 = DenseLayer(704)
        self.denselayer16 = DenseLayer(736)
        self.denselayer17 = DenseLayer(768)
        self.denselayer18 = DenseLayer(800)
        self.denselayer19 = DenseLayer(832)
        self.denselayer20 = DenseLayer(864)
        self.denselayer21 = DenseLayer(896)
        self.denselayer22 = DenseLayer(928)
        self.denselayer23 = DenseLayer(960)
        self.denselayer24 = DenseLayer(992)

    def forward(self, x: Tensor) -> Tensor:
        y = self.denselayer1(torch.cat([x], 1))
        z = torch.cat([x, y], 1)
        z = self.denselayer2(z)
        u = torch.cat([x, y, z], 1)
        u = self.denselayer3(u)
        v = torch.cat([x, y, z, u], 1)
        v = self.denselayer4(v)
        w = torch.cat([x, y, z, u, v], 1)
        w = self.denselayer5(w)
        y2 = torch.cat([x, y, z, u, v, w], 1)
        y2 = self.denselayer6(y2)
        y3 = torch.cat([x, y, z, u, v, w, y2], 1)
        y3 = self.denselayer7(y3)
        y4 = torch.cat([x, y, z, u, v, w, y2, y3], 1)
        y4 = self.denselayer8(y4)
        y5 = torch.cat([x, y, z, u, v, w, y2, y3, y4], 1)
        y5 = self.denselayer9(y5)
        y6 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5], 1)
        y6 = self.denselayer10(y6)
        y7 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6], 1)
        y7 = self.denselayer11(y7)
        y8 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7], 1)
        y8 = self.denselayer12(y8)
        y9 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8], 1)
        y9 = self.denselayer13(y9)
        y10 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9], 1)
        y10 = self.denselayer14(y10)
        y11 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10], 1)
        y11 = self.denselayer15(y11)
        y12 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11], 1)
        y12 = self.denselayer16(y12)
        y13 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12], 1)
        y13 = self.denselayer17(y13)
        y14 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13], 1)
        y14 = self.denselayer18(y14)
        y15 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14], 1)
        y15 = self.denselayer19(y15)
        y16 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14, y15], 1)
        y16 = self.denselayer20(y16)
        y17 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14, y15, y16], 1)
        y17 = self.denselayer21(y17)
        y18 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14, y15, y16, y17], 1)
        y18 = self.denselayer22(y18)
        y19 = torch.cat(
            [x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14, y15, y16, y17, y18], 1
        )
        y19 = self.denselayer23(y19)
        y20 = torch.cat(
            [x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14, y15, y16, y17, y18, y19], 1
        )
        y20 = self.denselayer24(y20)
        return torch.cat(
            [x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14, y15, y16, y17, y18, y19, y20], 1
        )


class DenseBlock3(nn.Module):
    """`features.denseblock2`."""

    def __init__(self) -> None:
        super().__init__()
        self.denselayer1 = DenseLayer(128)
        self.denselayer2 = DenseLayer(160)
        self.denselayer3 = DenseLayer(192)
        self.denselayer4 = DenseLayer(224)
        self.denselayer5 = DenseLayer(256)
        self.denselayer6 = DenseLayer(288)
        self.denselayer7 = DenseLayer(320)
        self.denselayer8 = DenseLayer(352)
        self.denselayer9 = DenseLayer(384)
        self.denselayer10 = DenseLayer(416)
        self.denselayer11 = DenseLayer(448)
        self.denselayer12 = DenseLayer(480)

    def forward(self, x: Tensor) -> Tensor:
        y = self.denselayer1(torch.cat([x], 1))
        z = torch.cat([x, y], 1)
        z = self.denselayer2(z)
        u = torch.cat([x, y, z], 1)
        u = self.denselayer3(u)
        v = torch.cat([x, y, z, u], 1)
        v = self.denselayer4(v)
        w = torch.cat([x, y, z, u, v], 1)
        w = self.denselayer5(w)
        y2 = torch.cat([x, y, z, u, v, w], 1)
        y2 = self.denselayer6(y2)
        y3 = torch.cat([x, y, z, u, v, w, y2], 1)
        y3 = self.denselayer7(y3)
        y4 = torch.cat([x, y, z, u, v, w, y2, y3], 1)
        y4 = self.denselayer8(y4)
        y5 = torch.cat([x, y, z, u, v, w, y2, y3, y4], 1)
        y5 = self.denselayer9(y5)
        y6 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5], 1)
        y6 = self.denselayer10(y6)
        y7 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6], 1)
        y7 = self.denselayer11(y7)
        y8 = torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7], 1)
        y8 = self.denselayer12(y8)
        return torch.cat([x, y, z, u, v, w, y2, y3, y4, y5, y6, y7, y8], 1)


class DenseBlock4(nn.Module):
    """`features.denseblock1`."""

    def __init__(self) -> None:
        super().__init__()
        self.denselayer1 = DenseLayer(64)
        self.denselayer2 = DenseLayer(96)
        self.denselayer3 = DenseLayer(128)
        self.denselayer4 = DenseLayer(160)
        self.denselayer5 = DenseLayer(192)
        self.denselayer6 = DenseLayer(224)

    def forward(self, x: Tensor) -> Tensor:
        y = self.denselayer1(torch.cat([x], 1))
        z = torch.cat([x, y], 1)
        z = self.denselayer2(z)
        u = torch.cat([x, y, z], 1)
        u = self.denselayer3(u)
        v = torch.cat([x, y, z, u], 1)
        v = self.denselayer4(v)
        w = torch.cat([x, y, z, u, v], 1)
        w = self.denselayer5(w)
        y2 = torch.cat([x, y, z, u, v, w], 1)
        return torch.cat([x, y, z, u, v, w, self.denselayer6(y2)], 1)


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
                "denseblock4": DenseBlock(),
                "denseblock3": DenseBlock2(),
                "transition3": Transition2(512),
                "denseblock2": DenseBlock3(),
                "transition2": Transition2(256),
                "denseblock1": DenseBlock4(),
                "transition1": Transition2(128),
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
        for name in ("denseblock3", "transition3"):
            x = self.features[name](x)
        return x

    def stage8(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[8](x)
        x = self.merge[8](upsample_nearest(x, image), self.entry[8](image))
        for name in ("denseblock2", "transition2"):
            x = self.features[name](x)
        return x

    def stage4(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.transition[4](x)
        x = self.merge[4](upsample_nearest(x, image), self.entry[4](image))
        for name in ("denseblock1", "transition1"):
            x = self.features[name](x)
        return x

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
