"""Convolutions that upsampling and merging are folded into: the same numbers from less.

A map that is upsampled by f and then convolved with a k x k kernel holds every pixel
f x f times. A transposed convolution of stride f, its kernel the k x k one summed over
an f x f box, gives the same from the small map: (k + f - 1)^2 / f^2 products a pixel
in place of k^2, and no upsampled copy. A convolution of [x + e, e] is the sum of one of
x and one of e, so that neither sum nor concatenation is made, and x may be the small
map again.

Parameters are those of the plain convolution, so a state_dict fits both forms.

Everything here uses torch alone: emitted source carries these definitions verbatim.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler.layers.upsample import upsample_nearest

__all__ = ["CombinedConv2d", "ConcatConv2d", "FoldedConv2d", "UpsampledConv2d"]


def spread(taps: int, factor: int, like: Tensor) -> Tensor:
    """Where a kernel's taps go, along one axis, when pixels become `factor` pixels.

    A matrix (taps, taps + factor - 1) of ones and zeros. Tap i, from the kernel's end
    as in a transposed convolution, goes to the `factor` places from i on.
    """
    first = torch.arange(taps - 1, -1, -1, device=like.device)
    shift = torch.arange(taps + factor - 1, device=like.device) - first[:, None]
    return ((shift >= 0) & (shift < factor)).to(like.dtype)


def transposed_kernel(weight: Tensor, factor: tuple[int, int], groups: int) -> Tensor:
    """The kernel that upsamples by `factor`, then convolves with `weight`.

    From (out, in / groups, kh, kw) to the (in, out / groups, kh + fh - 1, kw + fw - 1)
    that a transposed convolution of stride `factor` takes.
    """
    rows = spread(weight.shape[2], factor[0], weight)
    columns = spread(weight.shape[3], factor[1], weight)
    kernel = weight.flatten(2) @ torch.kron(rows, columns)
    kernel = kernel.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return kernel.unflatten(2, (rows.shape[1], columns.shape[1]))


def tiles(x: Tensor, image: Tensor, factor: tuple[int, int]) -> bool:
    """Whether every pixel of a map x becomes a whole block of the image's pixels.

    If not, blocks are cut off at the border, which only the plain form gets right. An
    exported or traced program takes that form too: it must hold for images of any size.
    """
    kind: type = type(x)
    symbolic = issubclass(kind, torch.fx.Proxy) or torch.jit.is_tracing()
    if symbolic or torch.compiler.is_exporting():
        return False
    size = (x.shape[-2] * factor[0], x.shape[-1] * factor[1])
    return image.shape[-2:] == size


class FoldedConv2d(nn.Conv2d):
    """A convolution of stride 1 that runs with kernels derived from its weight.

    In evaluation mode, where no gradient is wanted, they are kept until the weight is
    changed.
    """

    _kept: tuple[nn.Parameter, int, tuple[Tensor, ...]] | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        factor: int | tuple[int, int],
        padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, groups=groups, bias=bias)
        self.factor = (factor, factor) if isinstance(factor, int) else factor

    def derive(self) -> tuple[Tensor, ...]:
        """The kernels, from the weight, differentiably."""
        raise NotImplementedError

    def kernels(self) -> tuple[Tensor, ...]:
        """The kernels as they are now."""
        if torch.compiler.is_compiling():
            return self.derive()
        weight, keep = self.weight, not (self.training or torch.is_grad_enabled())
        if not keep or not isinstance(weight, nn.Parameter) or weight.is_inference():
            self._kept = None
            return self.derive()
        kept = self._kept
        if kept is None or kept[0] is not weight or kept[1] != weight._version:
            kernels = self.derive()
            if kernels[0].dtype != weight.dtype:  # under autocast, which may end
                return kernels
            self._kept = kept = (weight, weight._version, kernels)
        return kept[2]

    def grown(self, weight: Tensor) -> Tensor:
        """The kernel for a map that is still to be upsampled."""
        if self.factor == (1, 1):
            return weight
        return transposed_kernel(weight, self.factor, self.groups).contiguous()

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """Upsample a map and convolve it, in one step, with a kernel that is grown."""
        if self.factor == (1, 1):
            return F.conv2d(x, kernel, bias, padding=self.padding, groups=self.groups)
        assert not isinstance(self.padding, str)
        down, across = self.padding
        padding = (self.kernel_size[0] - 1 - down, self.kernel_size[1] - 1 - across)
        return F.conv_transpose2d(x, kernel, bias, stride=self.factor, padding=padding, groups=self.groups)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FoldedConv2d":
        self._kept = None  # `to` writes past the version that the weight counts
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factor={self.factor}"


class UpsampledConv2d(FoldedConv2d):
    """Upsamples a map to the size of an image by nearest neighbours and convolves it.

    x (N, C, h, w) and an image (N, c, h f, w f) become (N, D, h f, w f).
    """

    def derive(self) -> tuple[Tensor, ...]:
        return (self.grown(self.weight),)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        if not tiles(x, image, self.factor):
            return super().forward(upsample_nearest(x, image))
        (kernel,) = self.kernels()
        return self.convolve(x, kernel, self.bias)


class ConcatConv2d(FoldedConv2d):
    """Convolves [x, e], the map so far x upsampled to the size of the entry e before.

    x (N, C, h, w) and e (N, C, h f, w f) become (N, D, h f, w f).
    """

    def derive(self) -> tuple[Tensor, ...]:
        for_x, for_e = self.weight.chunk(2, dim=1)
        return self.grown(for_x), for_e

    def join(self, x: Tensor, e: Tensor) -> Tensor:
        """What the convolution is of."""
        return torch.cat([x, e], 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        if not tiles(x, e, self.factor):
            return super().forward(self.join(upsample_nearest(x, e), e))
        for_x, for_e = self.kernels()
        y = F.conv2d(e, for_e, self.bias, padding=self.padding)
        return y + self.convolve(x, for_x)


class CombinedConv2d(ConcatConv2d):
    """Convolves [x + e, e], x upsampled to the entry's size before.

    x (N, C, h, w) and e (N, C, h f, w f) become (N, D, h f, w f).
    """

    def derive(self) -> tuple[Tensor, ...]:
        for_sum, for_e = self.weight.chunk(2, dim=1)
        return self.grown(for_sum), for_sum + for_e

    def join(self, x: Tensor, e: Tensor) -> Tensor:
        """What the convolution is of."""
        return torch.cat([x + e, e], 1)
