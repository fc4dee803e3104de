"""`verify` on the corpus: what converts there is right, so no check may fail; and the networks survive pickle.

A sample of one case a file; with TD_FAULTS=all every case (`make faults-verify`, some minutes).
"""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from td_compiler import ConversionError, reverse, verify
from td_compiler.network.base import TopDownNet
from tests.faults.test_faults import HERE, given, load

EVERY = os.environ.get("TD_FAULTS") == "all"
# What is not looked at, and why: nothing else may be left out.
WITHOUT_SOURCE = {
    *("emitted source loads strictly", "emitted source computes the same bits"),
    *("made afresh from it, a network trains", "made afresh, it is drawn as the source is"),
    "made afresh, it takes other classes",
}
LEFT_OUT = {"10_weight_norm[prune, width kept]": WITHOUT_SOURCE}


def cases() -> Iterator[Any]:
    """Cases that convert; of every file another place in its list, so that all arrangements are among them."""
    for i, path in enumerate(sorted(HERE.glob("[0-9]*_*.py"))):
        module = load(path)
        if hasattr(module, "convert"):
            continue  # under modes of the caller's, or of a network that has a second one made of it
        found = [case for case in module.CASES if given(module, "EXPECT", "converts", case[0]) != "refused"]
        chosen = found if EVERY or not found else [found[i % len(found)]]
        for label, make, size, options in chosen:
            yield pytest.param(make, size, options, id=f"{path.stem}[{label}]")


def copies(td: TopDownNet, model: nn.Module) -> Iterator[nn.Module]:
    """The network copied, pickled and saved whole, each where its source can be."""

    def through_pickle(network: nn.Module) -> Any:
        return pickle.loads(pickle.dumps(network))

    def through_file(network: nn.Module) -> Any:
        file = io.BytesIO()
        torch.save(network, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    for way in (copy.deepcopy, through_pickle, through_file):
        try:
            way(model)
        except Exception:
            continue
        yield way(td)


def bits(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        scores = network(images)
    assert isinstance(scores, torch.Tensor)
    return scores


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "size", "options"), list(cases()))
def test_case(
    request: pytest.FixtureRequest,
    make: Callable[[], nn.Module],
    size: tuple[int, int, int] | None,
    options: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    model = make()
    try:
        result = verify(model, **({} if size is None else {"input_size": size}), **options)
    except ConversionError:
        pytest.skip("refused")  # by right or not: test_faults.py says
    assert not result.failures, str(result.failures[0])
    left_out = {check.name for check in result.checks if check.skipped}
    allowed: set[str] = next((names for case, names in LEFT_OUT.items() if f"[{case}]" in request.node.name), set())
    assert left_out <= allowed, f"not looked at: {sorted(left_out)}"
    assert result.td is not None
    images = torch.rand(2, *result.td.report.input_size).to(next(result.td.parameters()).dtype)
    for copied in copies(result.td, model):
        for training in (True, False):
            expected = bits(copy.deepcopy(result.td).train(training), images)
            assert torch.equal(bits(copy.deepcopy(copied).train(training), images), expected)


def test_random_steps() -> None:
    """Random steps draw alike in both runs of the round trip, whatever the caller's generator has drawn before."""
    module = load(HERE / "06_training_branch.py")
    make = module.MAKE["dropped path"]
    for seed in range(3):
        torch.manual_seed(seed)
        model = make()
        check = next(
            c for c in verify(model, reverse(model, input_size=(3, 32, 32))).checks if "put together" in c.name
        )
        assert check.passed and "training" in check.detail, str(check)
