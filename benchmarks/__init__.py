"""Experiments with top-down networks: `python -m td_compiler.benchmarks EXPERIMENT [options]`, extra `bench`."""
