"""Layers and parameters of the source called like what the top-down network has itself.

Today: KeyError, AttributeError, or a part of the network overwritten; no ConversionError.
Right: works: both the network's parts and the interface, under these or noted other names.
Why: SPEC 8.2 (what the result offers), README (layers keep their names).
"""

import torch
import torch.nn.functional as F
from common import Plain, image, parameters, trains, unit
from torch import nn

from td_compiler import reverse


class Layer(nn.Module):
    """Plain with its second unit under another name."""

    def __init__(self, name):
        super().__init__()
        self.a, self.c, self.fc, self.name = unit(3, 8), unit(16, 32), nn.Linear(32, 10), name
        self.add_module(name, unit(8, 16))

    def forward(self, x):
        x = self._modules[self.name](F.max_pool2d(self.a(x), 2))
        return self.fc(self.c(F.max_pool2d(x, 2)).mean((2, 3)))


class Value(Layer):
    """A gain of 8 numbers at the top, of the finest stage."""

    def __init__(self, name):
        super().__init__("b")
        self.value = name
        self.register_parameter(name, nn.Parameter(torch.ones(8, 1, 1)))

    def forward(self, x):
        x = self.b(F.max_pool2d(self.a(x) * self._parameters[self.value], 2))
        return self.fc(self.c(F.max_pool2d(x, 2)).mean((2, 3)))


LAYERS = (
    "merge",
    "entry",
    "transition",
    "upsample",
    "pyramid",
    "features",
    "segments",
    "report",
    "stage_maps",
    "forward_pyramid",
    "scales",
    "projection",
    "segmentation_head",
    "checkpointed",
)
VALUES = ("scales", "merge", "entry", "report", "segments", "pyramid", "features", "stage_maps")
CASES = [(f"layer {name}", lambda name=name: Layer(name), (3, 32, 32), {}) for name in LAYERS]
CASES += [(f"parameter {name}", lambda name=name: Value(name), (3, 32, 32), {}) for name in VALUES]
CASES += [
    (
        "own segmentation_head",
        lambda: Layer("segmentation_head"),
        (3, 32, 32),
        {"task": "segmentation", "num_classes": 5},
    )
]


def check(label, model, td):
    x = image()
    assert tuple(td.scales) == (1, 2, 4), f"td.scales is {td.scales}"
    assert len(td.pyramid(x)) == 3 and td.report.stages
    trains(td, x)
    options = {"task": "segmentation", "num_classes": 5} if label.startswith("own") else {}
    plain = Value("gamma") if label.startswith("parameter") else Plain()
    right = parameters(reverse(plain, input_size=(3, 32, 32), **options))
    assert parameters(td) == right, f"{parameters(td)} parameters, should be {right}"
