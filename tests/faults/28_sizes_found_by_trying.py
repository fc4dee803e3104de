"""Without input_size: networks that raise on sizes that are not theirs, or fold a larger map into the batch.

Today: the first size's ValueError comes out bare, or the size found gives 98 rows for 2 images and a bare
AssertionError.
Right: such a size is no candidate; the next are tried. With a size that does not fit: ConversionError, the network's
words.
Why: README, option input_size; SPEC 1.1.
"""

import torch.nn.functional as F
from common import Plain, image, same

from td_compiler import reverse


class Raises(Plain):
    def forward(self, x):
        if x.shape[-2:] != (32, 32):
            raise ValueError(f"images must be 32x32, not {tuple(x.shape[-2:])}")
        return super().forward(x)


class Asserts(Plain):
    def forward(self, x):
        assert x.shape[2] == 32, "images must be 32x32"
        return super().forward(x)


class Folds(Plain):
    def forward(self, x):
        return self.fc(F.avg_pool2d(self.maps(x), 8).view(-1, 32))


class FoldsModule(Folds):
    def forward(self, x):
        x = F.avg_pool2d(self.maps(x), kernel_size=8, stride=1)
        return self.fc(x.permute(0, 2, 3, 1).reshape(-1, 32))


CASES = [(kind.__name__, kind, None, {}) for kind in (Raises, Asserts, Folds, FoldsModule)]
CASES += [("wrong size given", Raises, (3, 64, 64), {}), ("wrong size given, assert", Asserts, (3, 64, 64), {})]
EXPECT = {"wrong size given": "refused", "wrong size given, assert": "refused"}
WORDS = {"wrong size given": ("images must be 32x32",), "wrong size given, assert": ("images must be 32x32",)}


def check(label, model, td):
    assert tuple(td.report.input_size) == (3, 32, 32), f"found {td.report.input_size}, only 32x32 fits"
    same(td, reverse(Plain(), input_size=(3, 32, 32)), image())
