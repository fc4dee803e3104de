"""Robustness of bottom-up networks and their top-down networks (SPEC 6.2; paper, Exp. 2)."""

from td_compiler.benchmarks.experiments.robustness.experiment import EXPERIMENT, main

__all__ = ["EXPERIMENT", "main"]
