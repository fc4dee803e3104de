"""Where networks look: heat maps of bottom-up networks and their top-down networks (SPEC 6.3a; paper, Exp. 3.a)."""

from benchmarks.experiments.explain.experiment import EXPERIMENT, main

__all__ = ["EXPERIMENT", "main"]
