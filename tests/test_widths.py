"""Widths through what networks do to channels: parts, zeros, permutations, gates, norms and parameters of their own."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from td_compiler import ConversionError, TopDownNet, reverse
from td_compiler.graph.parts import cut, equal_parts, equate, fresh, parts_of, want, width_of

FILTERS = ("mirror", "uniform", "reversed")
SIZE = (3, 32, 32)


def unit(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


class Block(nn.Module):
    """A residual block whose shortcut is widened by `widen`, with a gate on its branch."""

    def __init__(
        self, cin: int, cout: int, stride: int, gate: nn.Module, widen: Callable[[Tensor, int], Tensor]
    ) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.norm2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.gate, self.widen, self.more, self.stride = gate, widen, cout - cin, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        if self.stride > 1:
            x = self.widen(x[:, :, ::2, ::2], self.more)
        return F.relu(x + y)


def pad(x: Tensor, more: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, more))


class Net(nn.Module):
    """A stem and three stages of two blocks, widths 16, 32, 64."""

    def __init__(
        self, gate: Callable[[int], nn.Module] = lambda _: nn.Identity(), widen: Callable[[Tensor, int], Tensor] = pad
    ) -> None:
        super().__init__()
        sizes = (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)
        self.stem, self.fc = unit(3, 16), nn.Linear(64, 10)
        self.blocks = nn.Sequential(*[Block(*size, gate(size[1]), widen) for size in sizes])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def convert(network: nn.Module, filters: str) -> TopDownNet:
    """The top-down network, of which every parameter gets a gradient."""
    td = reverse(network, input_size=SIZE, filters=filters)
    td.train()(torch.rand(2, *SIZE)).square().mean().backward()
    assert all(p.grad is not None for p in td.parameters())
    return td


ZEROS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "both sides": lambda x, more: F.pad(x, (0, 0, 0, 0, more // 2, more - more // 2)),
    "zeros": lambda x, more: torch.cat([x, torch.zeros(x.size(0), more, x.size(2), x.size(3))], 1),
    "new_zeros": lambda x, more: torch.cat([x, x.new_zeros(x.shape[0], more, *x.shape[2:])], 1),
    "zeros_like": lambda x, more: torch.cat([x, torch.zeros_like(x)], 1),
    "times zero": lambda x, more: torch.cat((x, x.mul(0)), dim=1),
}


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("widen", ZEROS.values(), ids=list(ZEROS))
def test_shortcuts_padded_with_zero_channels_are_the_same_in_every_spelling(
    widen: Callable[[Tensor, int], Tensor], filters: str
) -> None:
    """SPEC 2.4: a projection where the map shrinks, the padding where it grows, nothing where widths are equal."""
    td, right = convert(Net(widen=widen), filters), convert(Net(), filters)
    assert count(td) == count(right)
    assert any("projection" in name for name, _ in td.named_modules()) == (filters == "mirror")


class Own(nn.Module):
    """A step with parameters of its own, outside torch's layers."""

    def __init__(self, width: int, step: Callable[[Own, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.step, self.width = step, width

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


OWN: dict[str, Callable[[Own, Tensor], Tensor]] = {
    "view": lambda m, x: x * m.weight.view(1, -1, 1, 1) + m.bias.view(1, -1, 1, 1),
    "literal view": lambda m, x: x * m.weight.view(1, m.width, 1, 1) + m.bias.reshape(m.width, 1, 1),
    "index": lambda m, x: x * m.weight[:, None, None] + m.bias[None, :, None, None],
    "unsqueeze": lambda m, x: x * m.weight.unsqueeze(-1).unsqueeze(-1) + m.bias.unsqueeze(1).unsqueeze(2),
    "computed": lambda m, x: x * torch.exp(m.weight - 1).view(1, -1, 1, 1) + (2 * m.bias)[:, None, None],
    "layer_norm": lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (m.width,), m.weight, m.bias).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("step", OWN.values(), ids=list(OWN))
def test_parameters_outside_layers_have_the_width_of_their_map(
    step: Callable[[Own, Tensor], Tensor], filters: str
) -> None:
    td = convert(Net(lambda width: Own(width, step)), filters)
    assert count(td) == count(convert(Net(nn.BatchNorm2d), filters))


class Pick(nn.Module):
    def __init__(self, order: list[int], kind: str) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(order))
        self.order, self.kind = order, kind

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order] if self.kind == "list" else x[:, self.numbers]


@pytest.mark.parametrize("kind", ["list", "buffer"])
def test_permutations_follow_the_width_and_other_choices_are_refused(kind: str) -> None:
    """SPEC 2.14: a buffer of indices follows its channels or the network is refused."""
    td = convert(Net(lambda width: Pick(list(range(width))[::-1], kind)), "uniform")
    assert count(td) == count(convert(Net(), "uniform"))
    doubled = Net(lambda width: Pick([2 * (n // 2) for n in range(width)], kind))
    with pytest.raises(ConversionError, match="numbers" if kind == "buffer" else "by their numbers"):
        reverse(doubled, input_size=SIZE, filters="uniform")


class Halves(nn.Module):
    """A convolution on some of the channels, taken in one of several ways."""

    def __init__(self, width: int, take: Callable[[Tensor, int], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.part = width // 4
        self.conv, self.take = nn.Conv2d(self.part, self.part, 3, padding=1), take

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.take(x, self.part)
        return torch.cat([self.conv(a), b], 1)


TAKES: dict[str, Callable[[Tensor, int], tuple[Tensor, ...]]] = {
    "slices": lambda x, part: (x[:, :part], x[:, part:]),
    "ellipsis": lambda x, part: (x[:, :part, ...], x[:, part:, ...]),
    "narrow": lambda x, part: (x.narrow(1, 0, part), torch.narrow(x, 1, part, x.shape[1] - part)),
    "split": lambda x, part: tuple(torch.split(x, [part, x.shape[1] - part], dim=1)),
    "keyword": lambda x, part: tuple(x.split(split_size=[part, 3 * part], dim=1)),
    "from the end": lambda x, part: (x[:, : -(3 * part)], x[:, -(3 * part) :]),
}


@pytest.mark.parametrize("take", TAKES.values(), ids=list(TAKES))
def test_parts_are_the_same_in_every_spelling(take: Callable[[Tensor, int], tuple[Tensor, ...]]) -> None:
    td = convert(Net(lambda width: Halves(width, take)), "uniform")
    assert {td.get_submodule(f"blocks.{i}.gate.conv").in_channels for i in range(6)} == {8}


class Rex(nn.Module):
    """A block that adds what it reads to the first of its channels."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.cin, self.stride = cin, stride
        self.body = nn.Sequential(unit(cin, 2 * cin, stride), nn.Conv2d(2 * cin, cout, 1), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y if self.stride > 1 else torch.cat([y[:, : self.cin] + x, y[:, self.cin :]], 1)


@pytest.mark.parametrize("filters", FILTERS)
def test_blocks_that_add_to_a_part_of_their_channels(filters: str) -> None:
    """Under uniform the part that is not added to has no channels left, and goes."""
    blocks = [Rex(16, 20), Rex(20, 27), Rex(27, 38, 2), Rex(38, 50), Rex(50, 61, 2), Rex(61, 72)]
    model = nn.Sequential(unit(3, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(72, 10))
    td = convert(model, filters)
    widths = [td.get_submodule(f"{i}.body.2").num_features for i in range(1, 7)]
    assert widths == ([38] * 6 if filters == "uniform" else [20, 27, 38, 50, 61, 72])


def test_parts_add_up() -> None:
    channels = fresh(10)
    before, after = cut(channels, 4, 10)
    want(channels, 7, lambda _: [])
    assert (width_of(before), width_of(after), width_of(channels)) == (3, 4, 7)


def test_lists_cut_at_different_channels_are_cut_at_all_of_them() -> None:
    one, other = [*fresh(4), *fresh(8)], [*fresh(6), *fresh(6)]
    equate(one, other)
    assert parts_of(one) == parts_of(other)
    assert sum(parts_of(one).values()) == 3
    want(one, 24, lambda _: [])
    assert [width_of([part]) for part in one] == [8, 16]


def test_proportions_count_where_widths_differ() -> None:
    wide, narrow = fresh(128), fresh(32)
    equate(wide, narrow)
    first, _ = cut(narrow, 8, 32)
    assert [number for _, number in first] == [Fraction(8)]
    want(wide, 64, lambda _: [])
    assert width_of(first) == 16


def test_equal_parts_have_one_width() -> None:
    channels = fresh(12)
    parts = equal_parts(channels, 3)
    want(channels, 16, lambda _: [])
    assert {width_of(part) for part in parts} == {5}
    assert width_of(channels) == 15
