# ruff: noqa
"""Top-down ConvNeXt: coarse to fine over an image pyramid.

The top-down counterpart (Lelekas et al., CVPRW 2020) of torchvision:convnext_tiny, written by td-compiler 0.1.0 with
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

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


def _log_api_usage_once(obj: object) -> None:
    """Does nothing here; torchvision counts its uses with it."""


# fmt: off
def stochastic_depth(input: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """
    Implements the Stochastic Depth from `"Deep Networks with Stochastic Depth"
    <https://arxiv.org/abs/1603.09382>`_ used for randomly dropping residual
    branches of residual architectures.

    Args:
        input (Tensor[N, ...]): The input tensor or arbitrary dimensions with the first one
                    being its batch i.e. a batch with ``N`` rows.
        p (float): probability of the input to be zeroed.
        mode (str): ``"batch"`` or ``"row"``.
                    ``"batch"`` randomly zeroes the entire input, ``"row"`` zeroes
                    randomly selected rows from the batch.
        training: apply stochastic depth if is ``True``. Default: ``True``

    Returns:
        Tensor[N, ...]: The randomly zeroed tensor.
    """
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        _log_api_usage_once(stochastic_depth)
    if p < 0.0 or p > 1.0:
        raise ValueError(f"drop probability has to be between 0 and 1, but got {p}")
    if mode not in ["batch", "row"]:
        raise ValueError(f"mode has to be either 'batch' or 'row', but got {mode}")
    if not training or p == 0.0:
        return input

    survival_rate = 1.0 - p
    if mode == "row":
        size = [input.shape[0]] + [1] * (input.ndim - 1)
    else:
        size = [1] * input.ndim
    noise = torch.empty(size, dtype=input.dtype, device=input.device)
    noise = noise.bernoulli_(survival_rate)
    if survival_rate > 0.0:
        noise.div_(survival_rate)
    return input * noise
# fmt: on


# fmt: off
class StochasticDepth(nn.Module):
    """
    See :func:`stochastic_depth`.
    """

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        _log_api_usage_once(self)
        self.p = p
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        return stochastic_depth(input, self.p, self.mode, self.training)

    def __repr__(self) -> str:
        s = f"{self.__class__.__name__}(p={self.p}, mode={self.mode})"
        return s
# fmt: on


def upsample_nearest(x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Bring a map (N, C, h, w) to the size (H, W) of an image by nearest neighbours."""
    return F.interpolate(x, size=image.shape[-2:], mode="nearest")


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


class LayerNorm2d(nn.Module):
    """`entry.32.norm` and 10 more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, (self.channels,), weight=self.weight, bias=self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


class Entry(nn.Module):
    """Lifts an image to the width of its stage: `entry.32` and 4 more."""

    def __init__(self, in_chans: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_channels, kernel_size=4, padding="same")
        self.norm = LayerNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image))


class CNBlock(nn.Module):
    """`features.7.0` and 16 more."""

    def __init__(self, channels: int, p: float) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))
        self.block = nn.Sequential(
            OrderedDict(
                [
                    ("0", nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)),
                    ("2", nn.LayerNorm(channels, eps=1e-6)),
                    ("3", nn.Linear(channels, 4 * channels)),
                    ("4", nn.GELU()),
                    ("5", nn.Linear(4 * channels, channels)),
                ]
            )
        )
        self.stochastic_depth = StochasticDepth(p, "row")

    def forward(self, x: Tensor) -> Tensor:
        y = self.block[1](torch.permute(self.block[0](x), [0, 2, 3, 1]))
        y = self.block[3](self.block[2](y))
        y = self.layer_scale * torch.permute(self.block[4](y), [0, 3, 1, 2])
        return self.stochastic_depth(y) + x


class Merge(nn.Module):
    """Joins the map so far and the entry's map e: `merge.16` and 1 more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(2 * channels)
        self.act = nn.GELU()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        return self.conv(self.act(self.norm(x)))


class CNBlockUp(nn.Module):
    """`features.1.0`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((96, 1, 1), 1e-6))
        self.block = nn.Sequential(
            OrderedDict(
                [
                    ("0", nn.Conv2d(192, 192, kernel_size=7, padding=3, groups=192)),
                    ("2", nn.LayerNorm(192, eps=1e-6)),
                    ("3", nn.Linear(192, 384)),
                    ("4", nn.GELU()),
                    ("5", nn.Linear(384, 96)),
                ]
            )
        )
        self.stochastic_depth = StochasticDepth(0.0, "row")
        self.projection = nn.ModuleDict({"conv": nn.Conv2d(192, 96, kernel_size=1), "norm": nn.LayerNorm(96, eps=1e-6)})

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        y = upsample_nearest(x, image)
        y = self.block[1](torch.permute(self.block[0](y), [0, 2, 3, 1]))
        y = self.block[3](self.block[2](y))
        y = self.layer_scale * torch.permute(self.block[4](y), [0, 3, 1, 2])
        y = self.stochastic_depth(y)
        x = self.projection.norm(self.projection.conv(x).permute(0, 2, 3, 1))
        return y + upsample_nearest(x.permute(0, 3, 1, 2), image)


class Merge2(nn.Module):
    """Joins the map so far and the entry's map e: `merge.4` and 1 more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(192, 96, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(96, eps=1e-6)
        self.act = nn.GELU()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = torch.cat([x + e, e], 1)
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.act(x.permute(0, 3, 1, 2))


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
        x = merge(first(x, image), entry(image))
        for block in blocks:
            x = block(x)
        return x


class ConvNeXtTinyTD(nn.Module):
    """Top-down ConvNeXt: class scores from images (N, C, H, W)."""

    scales = (1, 4, 8, 16, 32)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 96
        self.entry = Numbered(
            {s: Entry(in_chans, width) for s, width in {32: 768, 16: 384, 8: 192, 4: 96, 1: 96}.items()}
        )
        self.features = Numbered(
            {
                6: nn.Sequential(LayerNorm2d(768), nn.Conv2d(768, 768, kernel_size=2, padding="same")),
                7: nn.Sequential(
                    CNBlock(768, p=0.08823529411764706),
                    CNBlock(768, p=0.09411764705882353),
                    CNBlock(768, p=0.1),
                ),
                4: Growing(LayerNorm2d(768), nn.Conv2d(768, 384, kernel_size=2, padding="same")),
                5: nn.Sequential(
                    CNBlock(384, p=0.03529411764705883),
                    CNBlock(384, p=0.0411764705882353),
                    CNBlock(384, p=0.047058823529411764),
                    CNBlock(384, p=0.052941176470588235),
                    CNBlock(384, p=0.058823529411764705),
                    CNBlock(384, p=0.06470588235294118),
                    CNBlock(384, p=0.07058823529411766),
                    CNBlock(384, p=0.07647058823529412),
                    CNBlock(384, p=0.0823529411764706),
                ),
                2: Growing(LayerNorm2d(384), nn.Conv2d(384, 192, kernel_size=2, padding="same")),
                3: nn.Sequential(
                    CNBlock(192, p=0.017647058823529415),
                    CNBlock(192, p=0.023529411764705882),
                    CNBlock(192, p=0.029411764705882353),
                ),
                1: Stage(CNBlockUp(), CNBlock(96, p=0.0058823529411764705), CNBlock(96, p=0.011764705882352941)),
            }
        )
        self.merge = Numbered({16: Merge(384), 8: Merge(192), 4: Merge2(), 1: Merge2()})
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(OrderedDict([("0", LayerNorm2d(96)), ("2", nn.Linear(96, num_classes))]))
        if not num_classes:
            self.reset_classifier(0)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.classifier[1]

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of num_classes in place; 0: none."""
        self.num_classes = num_classes
        self.classifier[1] = nn.Linear(96, num_classes) if num_classes else nn.Identity()
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
        x = torch.flatten(self.classifier[0](self.avgpool(x)), 1)
        return x if pre_logits else self.classifier[1](x)

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
