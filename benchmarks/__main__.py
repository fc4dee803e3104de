"""The command line of the experiments: `python -m td_compiler.benchmarks EXPERIMENT [options]`.

From a checkout, `python -m benchmarks` is the same.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn

from td_compiler.benchmarks.extra import NOT_INSTALLED, missing

# The module of each experiment, and what it shows. A module has `main(arguments, prog)`, which returns the exit status,
# and, where its results belong into the report, `EXPERIMENT`.
EXPERIMENTS = {
    "accuracy": ("experiments.accuracy", "accuracy and cost, bottom-up beside top-down"),
    "robustness": ("experiments.robustness", "attacks, corruptions, perturbed scales"),
    "explain": ("experiments.heatmaps.explain", "Grad-CAM, saliency and guided backpropagation as figures"),
    "localise": ("experiments.heatmaps.localise", "how well heat maps cover the object"),
    "segmentation": ("experiments.segmentation", "meshes of Fashion-MNIST, pixel by pixel"),
    "frequency": ("experiments.frequency", "blurs, cosines, Fourier masks, laplacian pyramid, progressive growing"),
    "compare": ("experiments.compare", "is the top-down version of a network better, and at what?"),
    "conversion": ("experiments.conversion", "time and memory of conversions"),
    "speed": ("experiments.speed", "emitted networks against the same written out plainly"),
    "scaling": ("experiments.scaling", "cost against batch size, image side and depth"),
    "refine": ("experiments.refine", "finer stages on one window: cost and accuracy"),
    "coverage": ("experiments.coverage", "which networks convert, and what their top-down networks cost"),
    "emission": ("experiments.emission", "how emitted source reads: lines, numbered classes, indices"),
    "report": ("show.command", "one page from all results so far"),
}


def experiment(name: str) -> Any:
    """The module of an experiment."""
    return importlib.import_module(f"td_compiler.benchmarks.{EXPERIMENTS[name][0]}")


def main(arguments: list[str], prog: str = "python -m benchmarks") -> NoReturn:
    """Run the experiment that the first argument names, with the rest as its options.

    Raises:
        SystemExit: always: with the experiment's status, or 2 on wrong usage, 1 where the extra `bench` is missing.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"Usage: {prog} EXPERIMENT [options]\n")
        for name, (_, summary) in EXPERIMENTS.items():
            print(f"  {name:14}{summary}")
        print(f"\n`{prog} EXPERIMENT --help` lists the options of one.")
        raise SystemExit(0 if arguments else 2)
    name, *options = arguments
    if name not in EXPERIMENTS:
        print(f"No experiment {name!r}; there are: {', '.join(EXPERIMENTS)}.", file=sys.stderr)
        raise SystemExit(2)
    if missing():
        print(f"{prog} {name}: {NOT_INSTALLED}", file=sys.stderr)
        raise SystemExit(1)
    raise SystemExit(experiment(name).main(options, prog=f"{prog} {name}"))


if __name__ == "__main__":
    main(sys.argv[1:], f"python -m {__package__}")
