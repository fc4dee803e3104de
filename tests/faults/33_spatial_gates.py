"""Gates for every pixel: one or two channels whatever the width.

Today: the gate's convolution is given another number of channels ("Invalid channel dimensions"; expand_as under
uniform).
Right: max and mean over channels leave one channel each; a convolution whose one channel is broadcast keeps it.
Why: SPEC 2.6, inner widths scale with the block; a channel that stands for all does not. Oracle 9.2.
"""

import torch
from common import Resnet, image, same
from torch import nn

from td_compiler import reverse


class Spatial(nn.Module):
    """`how`: max and mean by index and unsqueeze, or with keepdim."""

    def __init__(self, width, how="unsqueeze"):
        super().__init__()
        self.conv, self.how = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)), how

    def forward(self, x):
        if self.how == "unsqueeze":
            both = torch.cat((x.max(dim=1)[0].unsqueeze(1), x.mean(dim=1).unsqueeze(1)), dim=1)
        elif self.how == "stack":
            both = torch.stack((x.max(dim=1).values, x.mean(dim=1)), dim=1)
        else:
            both = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), dim=1)
        return x * torch.sigmoid(self.conv(both))


class Expanded(nn.Module):
    def __init__(self, width, how="expand_as"):
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, 1, 3, padding=1), how

    def forward(self, x):
        y = torch.sigmoid(self.b(torch.relu(self.a(x))))
        return x * (y.expand_as(x) if self.how == "expand_as" else y)


KINDS = {
    "max and mean": (Spatial, "keepdim"),
    "stacked": (lambda width: Spatial(width, "stack"), "keepdim"),
    "expanded": (Expanded, "broadcast"),
}
CASES = [
    (f"{kind}, {filters}", lambda gate=gate: Resnet(gate=gate), (3, 32, 32), {"filters": filters})
    for kind, (gate, _) in KINDS.items()
    for filters in ("mirror", "uniform", "reversed")
]


def check(label, model, td):
    kind, filters = label.split(", ")
    for name, conv in td.named_modules():
        if name.endswith(("gate.conv.0", "gate.b")):
            assert conv.out_channels == 1, f"{name} has {conv.out_channels} channels, should have 1"
    plain = (
        (lambda width: Expanded(width, "broadcast"))
        if kind == "expanded"
        else (lambda width: Spatial(width, "keepdim"))
    )
    same(td, reverse(Resnet(gate=plain), input_size=(3, 32, 32), filters=filters), image())
