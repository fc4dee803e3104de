"""A new head of several layers on the result, as for transfer learning.

Today: runs and trains, cannot be saved: "nn.Sequential() would not build the same module".
Right: save_pretrained and from_pretrained give the same bits.
Why: SPEC 8.1, blocks and layers can be wrapped or replaced.
"""

import tempfile
from pathlib import Path

import torch
from common import Plain, image
from torch import nn

from td_compiler import from_pretrained

HEADS = {
    "one layer": lambda: nn.Linear(8, 3),
    "dropout and layer": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)),
    "two layers": lambda: nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)),
    "identity": nn.Identity,
}
CASES = [(label, Plain, (3, 32, 32), {}) for label in HEADS]


@torch.no_grad()
def check(label, model, td):
    td.fc = HEADS[label]()
    x, td = image(), td.eval()
    assert td(x).shape == (2, 8 if label == "identity" else 3)
    with tempfile.TemporaryDirectory() as folder:
        td.save_pretrained(Path(folder) / "net")
        again = from_pretrained(Path(folder) / "net", trust_code=True).eval()
    assert torch.equal(again(x), td(x)), "the loaded network puts out other bits"
