"""Modules made and called inside forward.

Today: NameError "module is not installed as a submodule", without a name.
Right: one without parameters converts as its function; one with parameters is refused by class, with "__init__" as the
way out.
Why: SPEC 1.1.
"""

from common import Block, Plain, Resnet, image, same
from torch import nn

from td_compiler import reverse


class Inline(Block):
    def forward(self, x):
        y = self.norm2(self.conv2(nn.ReLU(inplace=True)(self.norm1(self.conv1(x)))))
        return nn.ReLU(inplace=True)(y + self.short(x))


class Pools(Plain):
    def forward(self, x):
        pool = nn.MaxPool2d(kernel_size=2)
        x = self.c(pool(self.b(pool(self.a(x)))))
        return self.fc(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())(x))


class Kept(Plain):
    """In a plain list, which registers nothing."""

    def __init__(self):
        super().__init__()
        self.extra = [nn.ReLU()]

    def forward(self, x):
        return self.fc(self.pool(self.extra[0](self.maps(x))).flatten(1))


class Untrained(Plain):
    def forward(self, x):
        return self.fc(self.pool(nn.Conv2d(32, 32, 1)(self.maps(x))).flatten(1))


CASES = [
    ("ReLU", lambda: Resnet(Inline), (3, 32, 32), {}),
    ("pools", Pools, (3, 32, 32), {}),
    ("in a list", Kept, (3, 32, 32), {}),
    ("with parameters", Untrained, (3, 32, 32), {}),
]
EXPECT = {"with parameters": "refused"}
WORDS = {"with parameters": ("Conv2d", "__init__")}


def check(label, model, td):
    same(td, reverse(Resnet() if label == "ReLU" else Plain(), input_size=(3, 32, 32)), image())
