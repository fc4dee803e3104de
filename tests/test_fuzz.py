"""What random networks under random options brought to light, and that the networks drawn are sound.

`make fuzz N=1000` draws networks (`tests/fuzz_networks.py`). One that fails is printed as code: keep it in
`tests/regressions.py`.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from td_compiler import ConversionError, verify
from tests.graphs import Network, build, networks, scales
from tests.regressions import OPEN, REGRESSIONS

# What is refused for a good reason: no network that is drawn has one.
REFUSALS: tuple[str, ...] = ()

NOT_MENDED = pytest.mark.xfail(strict=True, reason="found by fuzzing, not mended yet")
FINDINGS = [
    pytest.param(spec, choices, id=name, marks=NOT_MENDED if name in OPEN else ())
    for name, spec, choices in REGRESSIONS
]


def check(spec: Network, choices: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(spec)
    try:
        verification = verify(model, input_size=spec.size, **choices)
    except ConversionError as error:
        if any(re.search(refusal, str(error)) for refusal in REFUSALS):
            return
        raise
    assert verification.passed, str(verification)
    assert verification.td is not None
    found, expected = verification.td.scales, scales(spec)
    if choices.get("stem", "trailing") == "leading":  # the stem's factors come first there: the product alone is known
        assert (len(found), found[-1]) == (len(expected), expected[-1])
    else:
        assert found == expected


@pytest.mark.parametrize(("spec", "choices"), FINDINGS)
def test_what_was_found_before(spec: Network, choices: dict[str, Any]) -> None:
    check(spec, choices)


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
    from tests import graphs

    assert eval(repr(spec), vars(graphs)) == spec
    assert max(scales(spec)) > 1
    model = build(spec)
    scores = model(torch.randn(2, *spec.size))
    assert scores.shape == (2, spec.head.classes)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
