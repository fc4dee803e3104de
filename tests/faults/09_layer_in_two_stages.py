"""One convolution called in two stages, or twice in one.

Today: "cannot follow the top-down network's shapes", or a layer whose second name is gone, of which `verify`
complains.
Right: one layer where widths allow, else two and a note that names it; all source names that still mean something
stay.
Why: SPEC 2.14.
"""

from common import image, parameters, trains, unit
from torch import nn

from td_compiler import verify


class Twice(nn.Module):
    """Width 16 everywhere. Under mirror: entries 4 (the coarsest is unit d) + 2 merges + shared + fc."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.third, self.last = unit(3, 16), unit(16, 16), unit(16, 16), unit(16, 16)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(16, 10)

    def forward(self, x):
        x = self.shared(self.first(x))
        x = self.shared(self.third(self.pool(x)))
        return self.fc(self.last(self.pool(x)).mean((2, 3)))


class Names(nn.Module):
    """Blocks of one stage that hold one layer under two names, as in public networks with shared convolutions."""

    def __init__(self):
        super().__init__()
        shared = nn.Conv2d(16, 16, 3, padding=1)
        self.stem, self.fc, self.down = unit(3, 16), nn.Linear(32, 10), unit(16, 32, 2)
        self.blocks = nn.Sequential(*[nn.Sequential(unit(16, 16), shared) for _ in range(2)])

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(self.down(x).mean((2, 3)))


class Bare(nn.Module):
    """The coarsest stage has no layer but the shared one, which becomes the entry: it comes apart."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.fc = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 10),
        )

    def forward(self, x):
        x = self.shared(self.first(x).relu()).relu()
        x = self.shared(nn.functional.max_pool2d(x, 2)).relu()
        return self.fc(x.mean((2, 3)))


CASES = [
    ("two stages of one width", Twice, (3, 32, 32), {}),
    ("two names in one stage", Names, (3, 32, 32), {}),
    ("one use reads the image", Bare, (3, 32, 32), {}),
]


def check(label, model, td):
    x = image()
    trains(td, x)
    if label.startswith("two stages"):
        calls = []
        td.get_submodule("shared.0").register_forward_hook(lambda *_: calls.append(1))
        td(x)
        noted = any("shared" in note for note in td.report.notes)
        assert len(calls) == 2 or noted, f"the shared convolution is called {len(calls)} times, and no note says why"
        # first, third: 3 -> 16 as entries and 16 -> 16 behind merges; last: 3 -> 16, it is the coarsest entry itself
        expected = 3 * (27 * 16 + 32) + 2 * (32 * 16 * 9 + 32) + 3 * (16 * 16 * 9 + 32) + 170
        assert noted or abs(parameters(td) - expected) <= 32, f"{parameters(td)} parameters, should be {expected}"
    elif label.startswith("one use"):
        assert any("shared" in note for note in td.report.notes), (
            "the shared convolution came apart, and no note says so"
        )
        # 3 -> 8 twice (entry and coarsest), 8 -> 8 behind the merge twice (first, shared), merge 16 -> 8, head
        expected = 2 * (27 * 8 + 8) + 2 * (8 * 8 * 9 + 8) + (16 * 8 * 9 + 8) + 90
        assert parameters(td) == expected, f"{parameters(td)} parameters, should be {expected}"
    else:
        found = dict(td.named_parameters(remove_duplicate=False))
        second = found.get("blocks.1.1.weight")
        assert second is None or second is found["blocks.0.1.weight"], "the shared convolution came apart"
        failures = verify(model.train(), td.train(), input_size=(3, 32, 32)).failures
        assert not failures, f"verify: {failures[0]}"
