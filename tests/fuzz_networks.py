"""Random networks under random options: the compiler converts every one, and the checker finds nothing wrong.

Run by `make fuzz N=1000`, not by the suite. A network that fails is printed as code.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from typing import Any, get_args

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from td_compiler import options
from td_compiler.pyramid import Downsample
from tests.graphs import Network, networks
from tests.test_fuzz import check

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "50"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or time.time_ns() % 2**32

CHOICES = {
    "filters": options.Filters,
    "merge": options.Merge,
    "upsample": options.Upsample,
    "downsample": Downsample,
    "stem": options.Stem,
}
drawn_options = st.fixed_dictionaries({name: st.sampled_from(get_args(kind)) for name, kind in CHOICES.items()})
started, count = time.monotonic(), itertools.count(1)


@seed(SEED)
@settings(
    max_examples=EXAMPLES,
    database=None,
    deadline=None,
    print_blob=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(networks(), drawn_options)
def test_drawn_networks_convert(spec: Network, choices: dict[str, Any]) -> None:
    number = next(count)
    if number % 25 == 0:
        print(f"{number} networks, {time.monotonic() - started:.0f} s, FUZZ_SEED={SEED}", file=sys.stderr)
    check(spec, choices)
