"""Gates for every channel in the forms of public code: pooled over x.size(), expanded, or convolved along the channels.

Today: TypeError ('int' and 'Node'), a refusal because a pooling kernel stays as small as the source's map, or under
uniform.
Right: gates: the whole map is pooled at every scale; a kernel along the channels stays as it is.
Why: SPEC 1.3, a global pooling that gates is no downsampling; oracle 9.2.
"""

import torch
import torch.nn.functional as F
from common import Resnet, image, same, trains
from torch import nn

from td_compiler import reverse


class Gate(nn.Module):
    def __init__(self, width, how):
        super().__init__()
        self.down, self.up, self.how, self.width = (
            nn.Linear(width, width // 4),
            nn.Linear(width // 4, width),
            how,
            width,
        )

    def forward(self, x):
        if self.how == "kernel of the map":
            size = (x.size(2), x.size(3))
            y = F.avg_pool2d(x, size, stride=size).flatten(1)
        elif self.how == "square kernel":
            y = F.avg_pool2d(x, kernel_size=x.size(3)).view(-1, self.width)
        else:
            y = x.mean((2, 3))
        y = torch.sigmoid(self.up(F.relu(self.down(y))))
        return x * (
            y.unsqueeze(2).unsqueeze(3).expand_as(x) if self.how == "kernel of the map" else y.view(y.size(0), -1, 1, 1)
        )


class Along(nn.Module):
    """Three neighbouring channels weigh one: a kernel of 3 whatever the width."""

    def __init__(self, width, how):
        super().__init__()
        self.conv, self.how = nn.Conv1d(1, 1, 3, padding=1, bias=False), how

    def forward(self, x):
        if self.how == "along channels":
            y = self.conv(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        else:
            y = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[:, :, None, None]
        return x * torch.sigmoid(y).expand_as(x)


class Neighbours(nn.Module):
    """As Along, with a kernel of its own for every channel: a Conv1d of `width` groups over unfolded neighbours."""

    def __init__(self, width, how):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, groups=width, bias=False)

    def forward(self, x):
        y = F.unfold(x.mean((2, 3))[:, None, None, :], kernel_size=(1, 3), padding=(0, 1))  # (N, 3, C)
        return x * torch.sigmoid(self.conv(y.transpose(1, 2)).unsqueeze(-1))


KINDS = {
    "kernel of the map": (Gate, "mean"),
    "square kernel": (Gate, "mean"),
    "along channels": (Along, "plain"),
    "neighbours": (Neighbours, ""),
}
CASES = [
    (
        f"{how}, {filters}",
        lambda kind=kind, how=how: Resnet(gate=lambda width: kind(width, how)),
        (3, 32, 32),
        {"filters": filters},
    )
    for how, (kind, _) in KINDS.items()
    for filters in ("mirror", "uniform")
]


def check(label, model, td):
    how, filters = label.split(", ")
    kind, plain = KINDS[how]
    if how == "neighbours":
        for i, path in enumerate(("layer1.1", "layer2.1", "layer3.1")):
            gate, norm = td.get_submodule(path + ".gate.conv"), td.get_submodule(path + ".norm2")
            want = 32 if filters == "uniform" else 16 << i
            assert gate.in_channels == gate.groups == norm.num_features == want, (
                f"the gate of {path} is for {gate.in_channels} channels, should be {want}"
            )
        return trains(td, image())
    same(td, reverse(Resnet(gate=lambda width: kind(width, plain)), input_size=(3, 32, 32), filters=filters), image())
