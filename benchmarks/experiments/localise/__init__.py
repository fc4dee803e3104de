"""Weakly supervised localisation by Grad-CAM (SPEC 6.3b; paper, Exp. 3.b)."""

from benchmarks.experiments.localise.experiment import EXPERIMENT, main

__all__ = ["EXPERIMENT", "main"]
