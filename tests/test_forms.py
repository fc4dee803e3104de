"""`fast` and `plain` change a finished network's modules, in place, and nothing of what it computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from td_compiler import ConversionError, TopDownNet, fast, plain, reverse, zoo
from td_compiler.emission import emit_source
from td_compiler.layers.dropout import FastDropout
from td_compiler.layers.folding import FoldedConv2d
from tests.support.families import FAMILIES, converted

SPECIAL = (FoldedConv2d, FastDropout)


def draw() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def special(network: nn.Module) -> set[str]:
    return {path for path, module in network.named_modules() if isinstance(module, SPECIAL)}


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(name: str) -> None:
    td = copy.deepcopy(converted(name)).double().eval()
    layers, state, before = special(td), list(td.state_dict()), td(draw())
    report = td.report
    identities = {path: id(module) for path, module in td.named_modules()}
    assert plain(td) is td and not special(td)
    torch.testing.assert_close(td(draw()), before)
    assert list(td.state_dict()) == state and {path: id(m) for path, m in td.named_modules()} == identities
    assert plain(td).unfolded is None
    assert fast(td) is td and special(td) == layers and td.report is report
    assert torch.equal(td(draw()), before)


def test_plain_is_the_network_without_fast_forms() -> None:
    torch.manual_seed(0)
    model = zoo.nin_light()
    expected = reverse(model, fast=False).eval()
    found = reverse(model).eval()
    assert special(found) and not special(found.plain())
    found.load_state_dict(expected.state_dict())
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(found(images), expected(images))
    assert str(found) == str(expected)


class Adapted(nn.Module):
    """A block with something beside it, as adapters wrap it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.block(*inputs)
        return 1.5 * made


@pytest.mark.parametrize("form", [fast, plain])
def test_what_users_put_in_stays(form: object) -> None:
    td = copy.deepcopy(converted("resnet18")).double().eval()
    assert isinstance(td, TopDownNet) and callable(form)
    seen: list[str] = []
    td.get_submodule("layer2.0").register_forward_hook(lambda *_: seen.append("hook"))
    td.set_submodule("layer4.0", Adapted(td.get_submodule("layer4.0")))
    before = td(draw())
    form(td)
    torch.testing.assert_close(td(draw()), before)
    assert isinstance(td.get_submodule("layer4.0"), Adapted) and seen == ["hook", "hook"]
    with pytest.raises(ConversionError, match=r"layer4\.0 is a Adapted now and has no "):
        emit_source(td, class_name="Net", origin="here")
