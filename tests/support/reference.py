"""What the authors' own networks compute, under weights that depend on the parameters' shapes alone.

`data/authors_outputs.npz` holds outputs of the authors' published Keras code: softmax outputs (4, 10) under keys such
as `resnet32|bottom_up`, `resnet32|mirror`, `resnet18_light|mirror|leading`, and the scaled images (NHWC) under
`resnet32|p2`, `resnet32|p4`. Equal shapes got equal values, so no mapping of layer names is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

__all__ = ["INPUT_SIZES", "authors_array", "fill", "load_reference_weights", "reference_images"]

INPUT_SIZES = {
    "lenet_fc": (1, 28, 28),
    "nin_light": (1, 28, 28),
    "nin": (3, 32, 32),
    "resnet32": (3, 32, 32),
    "resnet18_light": (3, 64, 64),
}

_KINDS = {"w": 1, "b": 2, "g": 3, "beta": 4}


def authors_array(key: str) -> torch.Tensor:
    """An array of the authors' outputs; images come as (N, C, H, W)."""
    with np.load(Path(__file__).parents[1] / "data" / "authors_outputs.npz") as arrays:
        array = torch.from_numpy(arrays[key])
    return array.permute(0, 3, 1, 2) if array.dim() == 4 else array


def reference_images(name: str) -> torch.Tensor:
    """The images (4, C, H, W) that the authors' network of this zoo name was given."""
    channels, height, width = INPUT_SIZES[name]
    images = np.random.RandomState(0).rand(4, height, width, channels).astype("f4")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def fill(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """A parameter's values: `w` a convolution or linear weight, `b` its bias, `g` a norm's weight, `beta` its bias."""
    seed = (sum((i + 1) * 7919 * size for i, size in enumerate(shape)) + _KINDS[kind] * 104729) % 2**31
    values = np.random.RandomState(seed).randn(*shape).astype("f4")
    if kind == "w":
        values = values / np.sqrt(max(1, int(np.prod(shape[1:])))).astype("f4")
    else:
        values = values * np.float32(0.1) + np.float32(1 if kind == "g" else 0)
    return torch.from_numpy(values)


@torch.no_grad()
def load_reference_weights(model: nn.Module) -> nn.Module:
    """Give a network the reference weights in place, its norms eps 1e-5 and unit statistics; return it in eval mode."""
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            kinds = "w", "b"
        elif isinstance(module, _NormBase):
            kinds = "g", "beta"
            module.eps = 1e-5
            module.reset_running_stats()
        else:
            assert not list(module.parameters(recurse=False)), f"no rule for the parameters of {type(module).__name__}"
            continue
        for parameter, kind in zip((module.weight, module.bias), kinds, strict=True):
            if parameter is not None:
                parameter.copy_(fill(tuple(parameter.shape), kind))
    return model.eval()
