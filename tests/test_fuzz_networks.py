"""Random networks under random options: the compiler converts every one, and the checker finds nothing wrong.

The suite draws 50, the same ones every time; `make fuzz N=1000` draws others. A network that fails is printed as code:
keep it in `tests/support/regressions.py`.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from td_compiler import options
from td_compiler.layers.pyramid import Downsample
from tests.support.graphs import Network, networks
from tests.test_fuzz import converts

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "50"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SHARDS = 2

CHOICES = {
    "filters": options.Filters,
    "merge": options.Merge,
    "upsample": options.Upsample,
    "downsample": Downsample,
    "stem": options.Stem,
}
drawn_options = st.fixed_dictionaries({name: st.sampled_from(get_args(kind)) for name, kind in CHOICES.items()})


@pytest.mark.parametrize("shard", range(SHARDS))
def test_drawn_networks_convert(shard: int) -> None:
    started, drawn = time.monotonic(), Counter[bool]()

    @seed(SEED * SHARDS + shard)
    @settings(
        max_examples=-(-EXAMPLES // SHARDS),
        database=None,
        deadline=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(networks(), drawn_options)
    def convert(spec: Network, choices: dict[str, Any]) -> None:
        drawn[converts(spec, choices)] += 1
        if drawn.total() % 25 == 0:
            seconds = time.monotonic() - started
            print(f"{drawn.total()} networks, {seconds:.0f} s, FUZZ_SEED={SEED} shard {shard}", file=sys.stderr)

    convert()
    assert drawn[False] <= drawn.total() / 10, f"{drawn[False]} of {drawn.total()} refused"
