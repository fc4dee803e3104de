"""What random networks under random options brought to light, and that the networks drawn are sound.

`tests/test_fuzz_networks.py` draws them.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from td_compiler import ConversionError, verify
from tests.support.graphs import Network, build, networks, scales
from tests.support.regressions import REGRESSIONS

# What is refused for a good reason: most networks that are drawn have none.
REFUSALS = ("only its stem makes the map smaller",)


def converts(spec: Network, choices: dict[str, Any]) -> bool:
    """Convert and check a network; whether it was not refused for a good reason."""
    torch.manual_seed(0)
    model = build(spec)
    try:
        verification = verify(model, input_size=spec.size, **choices)
    except ConversionError as error:
        if any(re.search(refusal, str(error)) for refusal in REFUSALS):
            return False
        raise
    assert verification.passed, str(verification)
    assert verification.td is not None
    found, expected = verification.td.scales, scales(spec)
    if choices.get("stem", "trailing") == "leading":  # the stem's factors come first there: the product alone is known
        assert (len(found), found[-1]) == (len(expected), expected[-1])
    else:
        assert found == expected
    return True


@pytest.mark.parametrize(("spec", "choices"), [pytest.param(*case, id=name) for name, *case in REGRESSIONS])
def test_what_was_found_before(spec: Network, choices: dict[str, Any]) -> None:
    assert converts(spec, choices)


@settings(
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(networks())
def test_drawn_networks_are_valid_and_print_as_code(spec: Network) -> None:
    from tests.support import graphs

    assert eval(repr(spec), vars(graphs)) == spec
    assert max(scales(spec)) > 1
    model = build(spec)
    scores = model(torch.randn(2, *spec.size))
    assert scores.shape == (2, spec.head.classes)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
