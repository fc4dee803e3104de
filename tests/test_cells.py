"""Cells that read the last two outputs (SPEC 2.13): against a network written by hand, and in several idioms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import ConversionError, reverse, verify
from td_compiler.emission import emit_source
from td_compiler.network.refine import Refined
from td_compiler.network.taps import tapped
from td_compiler.report.receptive_fields import receptive_fields

SIZE = (3, 32, 32)


def step(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """ReLU, convolution, batch norm."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(cout))


class Sum(nn.Module):
    """f(x) + g(older), with an older map that is still one scale finer where `halve` is 2."""

    def __init__(self, cin: int, older: int, cout: int, stride: int, halve: int) -> None:
        super().__init__()
        self.f, self.g = step(cin, cout, 3, stride), step(older, cout, 1, stride * halve)

    def forward(self, x: torch.Tensor, older: torch.Tensor) -> torch.Tensor:
        return self.f(x) + self.g(older)


class Sums(nn.Module):
    """Two cells, then three for every halving; each in a module of its own, or all written out in `forward`."""

    def __init__(self, halvings: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        cells, width = [Sum(8, 8, 8, 1, 1), Sum(8, 8, 8, 1, 1)], 8
        for _ in range(halvings):
            cells += [Sum(width, width, 2 * width, 2, 1), Sum(2 * width, width, 2 * width, 1, 2)]
            cells += [Sum(2 * width, 2 * width, 2 * width, 1, 1)]
            width *= 2
        self.cells, self.fc = nn.ModuleList(cells), nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        older = x = self.stem(images)
        for cell in self.cells:
            older, x = x, cell(x, older)
        return self.fc(x.mean((2, 3)))


class Inline(Sums):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        state = [self.stem(images)] * 2
        for cell in self.cells:
            assert isinstance(cell, Sum)
            state = [cell.f(state[0]) + cell.g(state[1]), state[0]]
        return self.fc(state[0].mean((2, 3)))


class Halved(nn.Module):
    """A factorised reduction: every second pixel, and every second pixel shifted by one."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.even, self.odd = nn.Conv2d(cin, cout // 2, 1, 2), nn.Conv2d(cin, cout - cout // 2, 1, 2)
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:])], 1))


class Concat(nn.Module):
    def __init__(self, cin: int, older: int, width: int, stride: int, halve: bool) -> None:
        super().__init__()
        self.first, self.second = step(cin, width, 1), Halved(older, width) if halve else step(older, width, 1)
        self.a, self.b, self.c = (step(width, width, kernel, stride) for kernel in (3, 5, 3))
        self.pool = nn.MaxPool2d(3, stride, 1)

    def forward(self, x: torch.Tensor, older: torch.Tensor) -> torch.Tensor:
        x, older = self.first(x), self.second(older)
        return torch.cat([self.a(x) + self.b(older), self.pool(x) + self.c(x)], 1)


class Concats(nn.Module):
    """Cells that concatenate sums; 1 in `plan` stands for a cell that halves the map.

    Under `skip` the cell behind such a one reads, as the older map, what that one read.
    """

    def __init__(self, plan: Sequence[int], skip: bool = False, stem: int = 0) -> None:
        super().__init__()
        self.plan, self.skip = plan, skip
        self.stem0 = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.stem1 = step(8, 8, 3, 2) if stem else nn.Identity()
        x = older = 8
        width, halve, cells = 4, bool(stem), []
        for reduces in plan:
            width *= 1 + reduces
            cells.append(Concat(x, older, width, 1 + reduces, halve))
            halve = bool(reduces)
            older = older if skip and reduces else x
            x = 2 * width
        self.cells, self.fc = nn.ModuleList(cells), nn.Linear(x, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        older = self.stem0(images)
        x = self.stem1(older)
        for cell, reduces in zip(self.cells, self.plan, strict=True):
            made = cell(x, older)
            older = older if self.skip and reduces else x
            x = made
        return self.fc(F.relu(x).mean((2, 3)))


class Identities(nn.Module):
    """f(x) + older, the older map averaged or brought to the width where it must be."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.g = nn.Conv2d(3, 8, 3, 1, 1), nn.ModuleList(), nn.ModuleList()
        x = older = 8
        for width, stride in [(8, 1), (8, 1), (8, 2), (8, 1), (8, 1), (16, 2), (16, 1), (16, 1)]:
            self.f.append(nn.Sequential(step(x, width, 3, stride), step(width, width)))
            self.g.append(nn.Identity() if older == width else step(older, width, 1))
            older, x = x, width
        self.fc = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        older = x = self.stem(images)
        for f, g in zip(self.f, self.g, strict=True):
            made, kept = f(x), g(older)
            factor = kept.shape[-1] // made.shape[-1]
            older, x = x, made + (F.avg_pool2d(kept, factor) if factor > 1 else kept)
        return self.fc(x.mean((2, 3)))


class Halving(nn.Module):
    """Every cell halves the map, so the older one is four times as large as what is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.cells = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(4))
        self.skips = nn.ModuleList(nn.Conv2d(8, 8, 1, stride=4) for _ in range(3))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.stem(x)
        x = F.relu(self.cells[0](before))
        for cell, skip in zip(self.cells[1:], self.skips, strict=True):
            before, x = x, F.relu(cell(x)) + skip(before)
        return self.fc(x.mean((2, 3)))


IDIOMS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {  # how to make it, cells of its stages, coarse to fine
    "in modules": (Sums, [3, 3, 2]),
    "written out": (Inline, [3, 3, 2]),
    "one halving": (lambda: Sums(1), [3, 2]),
    "concatenated": (lambda: Concats((0, 0, 1, 0, 1, 0)), [2, 2, 2]),
    "past a reduction": (lambda: Concats((0, 0, 1, 0, 1, 0), skip=True), [2, 2, 2]),
    "one cell a stage": (lambda: Concats((0, 1, 1, 1)), [1, 1, 1, 1]),
    "reduction first": (lambda: Concats((1, 0, 1, 0)), [2, 2, 0]),
    "two cells": (lambda: Concats((1, 1)), [1, 1, 0]),
    "a stem that hands on its input": (lambda: Concats((0, 0, 1, 0), stem=1), [2, 2, 0]),
    "halving": (Halving, [1, 1, 1, 0, 0]),
    "identities": (Identities, [3, 3, 2]),
}


class ByHand(nn.Module):
    """The top-down network of `Sums(2)`, written out: merges by addition, images by taking every second pixel."""

    def __init__(self) -> None:
        super().__init__()
        entries = [nn.Sequential(nn.Conv2d(3, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)) for c in (8, 16, 32)]
        self.entries, self.fc = nn.ModuleList(entries), nn.Linear(8, 10)
        widths = [(8, 16, 16), (8, 8, 16)]  # out, x, older
        widths += [(16, 32, 32), (16, 16, 32), (16, 16, 16)]
        widths += [(32, 32, 32)] * 3
        self.f = nn.ModuleList(step(x, out, 3) for out, x, _ in widths)
        self.g = nn.ModuleList(step(older, out, 1) for out, _, older in widths)

    def cell(self, i: int, x: torch.Tensor, older: torch.Tensor) -> torch.Tensor:
        def up(y: torch.Tensor, size: int) -> torch.Tensor:
            return y.repeat_interleave(size // y.shape[2], 2).repeat_interleave(size // y.shape[3], 3)

        size = 32 >> (0 if i < 2 else 1 if i < 5 else 2)
        return self.f[i](up(x, size)) + up(self.g[i](older), size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fine, middle, coarse = (self.entries[i](images[:, :, :: 2**i, :: 2**i]) for i in range(3))
        c5 = self.cell(5, coarse, coarse)
        c6 = self.cell(6, c5, coarse)
        c7 = self.cell(7, c6, c5)
        c2 = self.cell(2, c7, c6) + middle
        c3 = self.cell(3, c2, c7)
        c4 = self.cell(4, c3, c2)
        c0 = self.cell(0, c4, c4) + fine
        return self.fc(self.cell(1, c0, c4).mean((2, 3)))


def fill(network: nn.Module) -> nn.Module:
    """Values that only depend on shapes, in evaluation mode."""
    with torch.no_grad():
        for parameter in network.parameters():
            seed = sum((i + 1) * n for i, n in enumerate(parameter.shape))
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.copy_(values / max(1, parameter[0].numel()) ** 0.5)
    return network.eval()


def images(side: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def convert(model: nn.Module, **options: Any) -> Any:
    return reverse(model, input_size=SIZE, **options)


@torch.no_grad()
@pytest.mark.parametrize("fast", [True, False])
def test_a_network_of_cells_is_the_one_written_by_hand(fast: bool) -> None:
    td, right = convert(Sums(), merge="add", downsample="none", fast=fast), ByHand()
    assert sum(p.numel() for p in td.parameters()) == sum(p.numel() for p in right.parameters())
    torch.testing.assert_close(fill(td)(images()), fill(right)(images()))


@pytest.mark.parametrize("idiom", IDIOMS)
def test_every_scale_has_its_cells(idiom: str) -> None:
    make, cells = IDIOMS[idiom]
    for filters, upsample in itertools.product(("mirror", "uniform", "reversed"), ("nearest", "transposed")):
        td = convert(make(), filters=filters, upsample=upsample)
        found = [stage.top_down.units for stage in reversed(td.report.stages[:-1])]
        bodies = [count for count in cells if count]
        assert [n for n in found if n] == (bodies[::-1] if filters == "reversed" else bodies), (filters, upsample)


@pytest.mark.parametrize("filters", ["mirror", "uniform", "reversed"])
@pytest.mark.parametrize("idiom", ["concatenated", "past a reduction", "one cell a stage", "identities"])
def test_networks_of_cells_pass_every_check(idiom: str, filters: str) -> None:
    torch.manual_seed(0)
    verification = verify(IDIOMS[idiom][0](), input_size=SIZE, filters=filters)
    assert verification.passed, str(verification)


@torch.no_grad()
def test_what_else_reads_a_top_down_network_of_cells() -> None:
    """Emitted source, taps, receptive fields, refined windows, checkpointing: all carry both maps on."""
    td = fill(convert(Concats((0, 1, 1, 1)), fast=False))
    expected = td(images())
    module: dict[str, Any] = {}
    exec(compile(emit_source(td, class_name="Cells", origin="cells"), "<emitted>", "exec"), module)
    written = module["Cells"]()
    written.load_state_dict(td.state_dict())
    assert torch.equal(written.eval()(images()), expected)
    torch.testing.assert_close(tapped(td)(images()), expected)
    assert torch.equal(Refined(td, patch=1.0)(images()), expected)
    assert Refined(td, patch=0.5)(images()).shape == expected.shape
    fields = receptive_fields(td)
    assert all(field is not None and field.smallest <= field.largest for field in fields.values())


def test_checkpointed_cells_have_the_same_gradients() -> None:
    td = convert(Concats((0, 1, 1, 1)))

    def gradients() -> list[torch.Tensor]:
        td.zero_grad()
        td(images()).square().sum().backward()
        return [p.grad.clone() for p in td.parameters() if p.grad is not None]

    plain = gradients()
    td.checkpoint_stages()
    torch.testing.assert_close(gradients(), plain)


class Parallel(nn.Module):
    """Two resolutions side by side to the end, each reading the other: no order of stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.fine, self.coarse = (nn.ModuleList(step(8, 8) for _ in range(3)) for _ in range(2))
        self.across = nn.ModuleList(nn.Conv2d(8, 8, 3, 2, 1) for _ in range(3))
        self.fc = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fine = self.stem(images)
        coarse = self.down(fine)
        for f, c, a in zip(self.fine, self.coarse, self.across, strict=True):
            coarser = c(coarse) + a(fine)
            fine = f(fine) + F.interpolate(coarse, scale_factor=2)
            coarse = coarser
        return self.fc(torch.cat([fine.mean((2, 3)), coarse.mean((2, 3))], 1))


def test_resolutions_side_by_side_are_refused_in_words() -> None:
    with pytest.raises(ConversionError, match=r"from 'down' on .* side by side.*no order"):
        convert(Parallel())
