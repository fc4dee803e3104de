"""The command line of the experiments: `python -m benchmarks EXPERIMENT [options]`."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

# The module of each experiment, and what it shows. A module has `main(arguments, prog)`, which returns the exit status,
# and, where its results belong into the report, `EXPERIMENT`.
EXPERIMENTS = {
    "accuracy": ("benchmarks.experiments.accuracy", "accuracy and cost, bottom-up beside top-down"),
    "robustness": ("benchmarks.experiments.robustness", "attacks, corruptions, perturbed scales"),
    "explain": ("benchmarks.experiments.heatmaps.explain", "Grad-CAM, saliency and guided backpropagation as figures"),
    "localise": ("benchmarks.experiments.heatmaps.localise", "how well heat maps cover the object"),
    "segmentation": ("benchmarks.experiments.segmentation", "meshes of Fashion-MNIST, pixel by pixel"),
    "frequency": (
        "benchmarks.experiments.frequency",
        "blurs, cosines, Fourier masks, laplacian pyramid, progressive growing",
    ),
    "conversion": ("benchmarks.experiments.conversion", "time and memory of conversions"),
    "speed": ("benchmarks.experiments.speed", "emitted networks against the same written out plainly"),
    "scaling": ("benchmarks.experiments.scaling", "cost against batch size, image side and depth"),
    "refine": ("benchmarks.experiments.refine", "finer stages on one window: cost and accuracy"),
    "coverage": ("benchmarks.experiments.coverage", "which networks convert, and what their top-down networks cost"),
    "emission": ("benchmarks.experiments.emission", "how emitted source reads: lines, numbered classes, indices"),
    "report": ("benchmarks.show.command", "one page from all results so far"),
}


def main(arguments: list[str]) -> NoReturn:
    """Run the experiment that the first argument names, with the rest as its options.

    Raises:
        SystemExit: always: with the experiment's status, or 2 on wrong usage.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("Usage: python -m benchmarks EXPERIMENT [options]\n")
        for name, (_, summary) in EXPERIMENTS.items():
            print(f"  {name:14}{summary}")
        print("\n`python -m benchmarks EXPERIMENT --help` lists the options of one.")
        raise SystemExit(0 if arguments else 2)
    name, *options = arguments
    if name not in EXPERIMENTS:
        print(f"No experiment {name!r}; there are: {', '.join(EXPERIMENTS)}.", file=sys.stderr)
        raise SystemExit(2)
    module = importlib.import_module(EXPERIMENTS[name][0])
    raise SystemExit(module.main(options, prog=f"python -m benchmarks {name}"))


if __name__ == "__main__":
    main(sys.argv[1:])
