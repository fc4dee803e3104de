"""Networks that are right, and `verify` says they are not.

Today: a failed check each: settings, filters, names or the output's shape.
Right: all checks passed, or 'not looked at'.
Why: SPEC 9, a false alarm is a defect like a miss.
"""

import torch
import torch.nn.functional as F
from common import Plain, Resnet, unit
from torch import nn

from td_compiler import verify


class Folds(Plain):
    """The source folds a larger map into the batch; the check should not expect that."""

    def forward(self, x):
        return self.fc(F.avg_pool2d(self.maps(x), 8).view(-1, 32))


class Flagged(Resnet):
    """A private attribute that a library hangs on every layer."""

    def __init__(self):
        super().__init__()
        for module in self.modules():
            module._is_ready = True


class Bare(nn.Module):
    """A shortcut that is a bare convolution where it projects, an empty Sequential elsewhere; pre-activation."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(cin),
            nn.ReLU(),
            nn.Conv2d(cin, cout, 3, stride, 1),
            nn.BatchNorm2d(cout),
            nn.ReLU(),
            nn.Conv2d(cout, cout, 3, 1, 1),
        )
        self.short = nn.Conv2d(cin, cout, 1, stride) if stride != 1 or cin != cout else nn.Sequential()

    def forward(self, x):
        return self.body(x) + self.short(x)


class SamePadded(nn.Conv2d):
    """A convolution that pads itself with a child module."""

    def __init__(self, cin, cout, k, stride=1, groups=1):
        super().__init__(cin, cout, k, stride, groups=groups)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1) if stride > 1 else (k // 2,) * 4) if k > 1 else nn.Identity()

    def forward(self, x):
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, 0, 1, self.groups)


class Inverted(nn.Module):
    """Expand, depthwise, gate, project; the first block does not expand, so its gate follows what comes in."""

    def __init__(self, cin, cout, grow, stride):
        super().__init__()
        mid = cin * grow
        self.expand = SamePadded(cin, mid, 1) if grow > 1 else nn.Identity()
        self.depthwise, self.project = SamePadded(mid, mid, 3, stride, mid), SamePadded(mid, cout, 1)
        self.gate_down, self.gate_up = SamePadded(mid, 4, 1), SamePadded(4, mid, 1)
        self.skip = stride == 1 and cin == cout

    def forward(self, x):
        y = F.silu(self.depthwise(F.silu(self.expand(x))))
        y = self.project(torch.sigmoid(self.gate_up(F.silu(self.gate_down(F.adaptive_avg_pool2d(y, 1))))) * y)
        return x + y if self.skip else y


def inverted():
    sizes = (16, 8, 1, 1), (8, 12, 4, 2), (12, 12, 4, 1), (12, 24, 4, 2), (24, 24, 4, 1)
    blocks = [Inverted(*size) for size in sizes]
    return nn.Sequential(
        SamePadded(3, 16, 3, 2), nn.SiLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)
    )


class Cheap(nn.Module):
    """A shortcut of depthwise and 1x1 convolutions, also where only the width changes."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.body = nn.Sequential(
            unit(cin, 2 * cin, 1, 1),
            unit(2 * cin, 2 * cin, stride, groups=2 * cin),
            nn.Conv2d(2 * cin, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        )
        depthwise = nn.Sequential(nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False), nn.BatchNorm2d(cin))
        self.short = (
            nn.Sequential()
            if stride == 1 and cin == cout
            else nn.Sequential(depthwise, nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))
        )

    def forward(self, x):
        return self.body(x) + self.short(x)


def cheap():
    blocks = Cheap(8, 8, 1), Cheap(8, 16, 2), Cheap(16, 24, 1), Cheap(24, 24, 1), Cheap(24, 32, 2), Cheap(32, 32, 1)
    return nn.Sequential(unit(3, 8, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


MAKE = {
    "batch folded": Folds,
    "private attribute": Flagged,
    "bare shortcut": lambda: Resnet(Bare),
    "child of a convolution": inverted,
    "depthwise shortcut": cheap,
}
CASES = [
    (f"{label}, {filters}", make, (3, 64, 64) if make in (inverted, cheap) else (3, 32, 32), {"filters": filters})
    for label, make in MAKE.items()
    for filters in ("mirror", "uniform")
]


def check(label, model, td):
    result = verify(model, td, filters=label.split(", ")[1], input_size=td.report.input_size)
    assert not result.failures, f"verify: {result.failures[0]}"
