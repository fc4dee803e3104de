"""Ordinary torchvision networks, in all three arrangements, on real tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
import torchvision

from td_compiler import reverse
from td_compiler.options import Filters
from tests.support.vgg import torchvision_network

NETWORKS = ("resnet18", "resnet34", "resnet50", "vgg11_bn", "vgg16", "mobilenet_v2")
ARRANGEMENTS: tuple[Filters, ...] = ("mirror", "uniform", "reversed")
CASES = list(itertools.product(NETWORKS, ARRANGEMENTS))
# The others are of the same classes; the widest of them in the arrangement that makes it widest.
TRAINED = [*itertools.product(("resnet18", "vgg11_bn", "mobilenet_v2"), ARRANGEMENTS), ("resnet50", "reversed")]
STEPS = dict.fromkeys(TRAINED, 20) | {("resnet50", "reversed"): 1}


@pytest.mark.parametrize(("name", "filters"), TRAINED)
def test_trains_on_odd_images(name: str, filters: Filters) -> None:
    """One pyramid level per scale, the right output, a gradient everywhere, and a loss that falls on a fixed batch."""
    torch.manual_seed(0)
    model = torchvision_network(name, num_classes=5)
    td = reverse(model, filters=filters, input_size=(3, 32, 32))
    images, labels = torch.randn(4, 3, 17, 15), torch.tensor([0, 1, 2, 3])
    assert td.scales == (1, 2, 4, 8, 16, 32)
    sizes = [tuple(level.shape[-2:]) for level in td.pyramid(images)]
    assert sizes == [(17, 15), (9, 8), (5, 4), (3, 2), (2, 1), (1, 1)]
    optimiser = torch.optim.SGD(td.parameters(), lr=0.002, momentum=0.9)
    losses = []
    for _ in range(STEPS[name, filters]):
        optimiser.zero_grad()
        scores = td(images)
        assert scores.shape == (4, 5)
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if len(losses) == 1:
            dead = [name for name, p in td.named_parameters() if p.grad is None or not p.grad.any()]
            assert not dead, dead
    assert len(losses) == 1 or sum(losses[-5:]) / 5 < 0.9 * losses[0], losses


@pytest.mark.parametrize(("name", "filters"), CASES)
def test_widths_of_the_stages(name: str, filters: Filters) -> None:
    """`mirror` keeps every scale's width, `reversed` turns the order round, `uniform` makes all one (paper 3.3)."""
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    rows = [row for row in reverse(model, filters=filters).report.stages[:-1] if row.top_down.units]
    found = [row.top_down.width for row in rows]
    own = [row.bottom_up.width for row in rows if row.bottom_up]
    if filters == "mirror":
        assert found == own
    elif filters == "reversed":
        assert found == own[::-1]
    else:
        assert len(set(found)) == 1 and found[0] in own
    units = [row.top_down.units for row in rows]
    bodies = [row.bottom_up.units for row in rows if row.bottom_up]
    assert units == (bodies[::-1] if filters == "reversed" else bodies)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_weights_are_kept(name: str) -> None:
    """Everything that the source names and that keeps its shape is there, with its value."""
    model = getattr(torchvision.models, name)(num_classes=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = reverse(model).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the source changed"
    kept = [key for key in before if key in state and state[key].shape == before[key].shape]
    assert all(torch.equal(state[key], before[key]) for key in kept)
    assert len(kept) > len(before) / 2
    lost = {key.rsplit(".", 1)[0] for key in before if key not in state}
    new = {key.split(".")[0] for key in state if key not in before}
    assert new <= {"entry", "merge", "transition", "layer1"}, new  # layer1.0 gains a projection
    assert len(lost) <= 6, lost  # the stem, and the coarsest stage's projection


def test_numbers_of_resnet18_by_hand() -> None:
    """Parameters of the mirror of torchvision's ResNet18, counted from its definition."""

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs  # no bias, batch norm behind

    def block(inputs: int, outputs: int) -> int:
        return conv(inputs, outputs, 3) + conv(outputs, outputs, 3) + (inputs != outputs) * conv(inputs, outputs, 1)

    total = conv(3, 512, 7) + 2 * block(512, 512)
    for inputs, outputs in ((512, 256), (256, 128), (128, 64)):
        total += block(inputs, outputs) + conv(3, outputs, 7) + conv(2 * outputs, outputs, 3) + block(outputs, outputs)
    total += 2 * (conv(3, 64, 7) + conv(128, 64, 3)) + 64 * 1000 + 1000
    td = reverse(torchvision.models.resnet18())
    assert sum(p.numel() for p in td.parameters()) == total
