"""The command line of the experiments: `python -m benchmarks EXPERIMENT [options]`."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Experiment:
    """One experiment: a module of this package with `main(arguments, prog)`, its exit status returned."""

    module: str
    summary: str


EXPERIMENTS = {
    "coverage": Experiment("benchmarks.coverage", "which networks convert, and what their top-down networks cost"),
}


def main(arguments: list[str]) -> NoReturn:
    """Run the experiment that the first argument names, with the rest as its options.

    Raises:
        SystemExit: always: with the experiment's status, or 2 on wrong usage.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("Usage: python -m benchmarks EXPERIMENT [options]\n")
        for name, experiment in EXPERIMENTS.items():
            print(f"  {name:12}{experiment.summary}")
        print("\n`python -m benchmarks EXPERIMENT --help` lists the options of one.")
        raise SystemExit(0 if arguments else 2)
    name, *options = arguments
    if name not in EXPERIMENTS:
        print(f"No experiment {name!r}; there are: {', '.join(EXPERIMENTS)}.", file=sys.stderr)
        raise SystemExit(2)
    module = importlib.import_module(EXPERIMENTS[name].module)
    raise SystemExit(module.main(options, prog=f"python -m benchmarks {name}"))


if __name__ == "__main__":
    main(sys.argv[1:])
