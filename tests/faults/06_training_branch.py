"""`if self.training:` around dropout or noise.

Today: the branch is left out of the top-down network, in training too; no note says so.
Right: kept: random in training, not in evaluation, where the network equals the one without the branch.
Why: SPEC 1.1, operations that run only in training stay and run only in training.
"""

import torch
import torch.nn.functional as F
from common import Plain, image, same
from torch import nn

from td_compiler import reverse


class Dropped(Plain):
    def forward(self, x):
        x = self.pool(self.maps(x)).flatten(1)
        if self.training:
            x = F.dropout(x, 0.5)
        return self.fc(x)


class Noisy(nn.Module):
    def forward(self, x):
        if self.training:
            return x + 0.5 * torch.randn_like(x)
        return x


class Skipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.training:
            y = y * torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), 0.5, device=x.device))
        return x + y


MAKE = {
    "dropout before the classifier": Dropped,
    "noise": lambda: Plain(last=Noisy()),
    "dropped path": lambda: Plain(last=Skipped()),
}
CASES = [
    (label, make, (3, 32, 32), {"filters": filters})
    for (label, make), filters in zip(MAKE.items(), ("mirror", "reversed", "mirror"))
]


class Calm(Skipped):
    def forward(self, x):
        return x + self.norm(self.conv(x))


def check(label, model, td):
    for module in td.train().modules():  # what is random is not the batch norms' business
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = image(batch=8)
    assert not torch.equal(td(x), td(x)), "two runs in training are equal: the branch is gone"
    plain = Plain(last=Calm()) if label == "dropped path" else Plain()
    same(td.eval(), reverse(plain, input_size=(3, 32, 32), filters="reversed" if label == "noise" else "mirror"), x)
