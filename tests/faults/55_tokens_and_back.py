"""Maps flattened to tokens, normalised, and brought back, as vision code shares with transformers.

Today: refused with a false reason: "the map grows from scale (4, 4) to (8, 2)".
Right: the same network as with permute, nn.LayerNorm, permute.
Why: SPEC 1.1 (a number that follows the image follows it in the result); oracle 9.2.
"""

from common import image, same
from torch import nn

from td_compiler import reverse


class Tokens(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        b, c, h, w = x.shape
        return self.norm(x.flatten(2).transpose(1, 2)).reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous()


class Transposed(Tokens):
    def forward(self, x):
        b, c, h, w = x.shape
        return self.norm(x.view(b, c, h * w).permute(0, 2, 1)).transpose(1, 2).view(b, c, h, w)


class Permuted(Tokens):
    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Net(nn.Module):
    def __init__(self, kind, widths=(16, 32, 64)):
        super().__init__()
        self.embed, self.stages, self.norms, cin = nn.ModuleList(), nn.ModuleList(), nn.ModuleList(), 3
        for i, width in enumerate(widths):
            k = 7 if i == 0 else 3
            self.embed.append(
                nn.Sequential(nn.Conv2d(cin, width, k, 4 if i == 0 else 2, k // 2), nn.BatchNorm2d(width))
            )
            self.stages.append(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU()))
            self.norms.append(kind(width))
            cin = width
        self.head = nn.Linear(cin, 10)

    def forward(self, x):
        for embed, stage, norm in zip(self.embed, self.stages, self.norms):
            x = embed(x)
            x = norm(x + stage(x))
        return self.head(x.flatten(2).mean(2))


CASES = [
    (f"{kind.__name__}, {filters}", lambda kind=kind: Net(kind), (3, 64, 64), {"filters": filters})
    for kind in (Tokens, Transposed)
    for filters in ("mirror", "uniform")
]


def check(label, model, td):
    right = reverse(Net(Permuted), input_size=(3, 64, 64), filters=label.split(", ")[1])
    same(td, right, image(size=64))
    same(td, right, image(size=72))
