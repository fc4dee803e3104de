"""Experiments with top-down networks, run from a checkout: `python -m benchmarks EXPERIMENT [options]`."""
