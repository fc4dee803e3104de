"""Whether anything of a conversion depends on the seed of Python's hashes: one network of every family, five seeds.

    python -m tests.hashes            # all; what differs is printed, and the exit status is 1
    python -m tests.hashes zoo:nin    # some

What is compared is the text that is emitted, the order of state and of stages' operations, and the notes; of a network
that is refused, the reason.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence

from td_compiler import ConversionError, reverse
from td_compiler.emission import emit_source
from td_compiler.sources.names import load_source
from tests.snapshots import names

__all__ = ["Facets", "differing", "facets", "under_seeds"]

SEEDS = range(5)

Facets = dict[str, str]  # what is looked at -> SHA-256 of it


def facets(name: str) -> Facets:
    """What conversion makes of a network, on the meta device, in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = load_source(name, {}, device="meta")
        try:
            td = reverse(source.model, input_size=source.input_size)
        except ConversionError as error:
            return {"refusal": _sha(str(error))}
        try:
            text = emit_source(td, class_name="Net", origin="test")
        except ConversionError as error:
            text = str(error)
    return {
        "text": _sha(text),
        "order of state": _sha(*td.state_dict()),
        "operations": _sha(*(str(segment.graph) for segment in td.segments)),
        "notes": _sha(*td.report.notes),
    }


def _sha(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def under_seeds(chosen: Sequence[str]) -> list[dict[str, Facets]]:
    """The facets of networks, by name, from one process for each seed."""
    found = []
    for seed in SEEDS:
        command = [sys.executable, "-m", "tests.hashes", "--print", *chosen]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": str(seed)}, stdout=subprocess.PIPE, text=True, check=True
        )
        found.append({name: made for line in done.stdout.splitlines() for name, made in json.loads(line).items()})
    return found


def differing(found: Sequence[dict[str, Facets]]) -> dict[str, list[str]]:
    """What differs between seeds, for each network of which something does."""
    wrong = {}
    for name, first in found[0].items():
        kinds = sorted({kind for of_seed in found for kind in {*first, *of_seed[name]}})
        unlike = [kind for kind in kinds if len({of_seed[name].get(kind) for of_seed in found}) > 1]
        if unlike:
            wrong[name] = unlike
    return wrong


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="networks such as zoo:nin; one of each family, if none is named")
    parser.add_argument("--print", action="store_true", help="of this process alone, a line of JSON for each network")
    given = parser.parse_args()
    chosen = given.names or names()
    if given.print:
        for name in chosen:
            print(json.dumps({name: facets(name)}), flush=True)
            gc.collect()
        return 0
    found = under_seeds(chosen)
    wrong = differing(found)
    for name, kinds in wrong.items():
        print(f"{name}: {', '.join(kinds)} not the same under all seeds")
    refused = sum("refusal" in made for made in found[0].values())
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} the same under {len(SEEDS)} seeds, {refused} of them refused")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
