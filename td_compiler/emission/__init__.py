"""Writes a top-down network as standalone, readable PyTorch source.

A network becomes text in four steps: units that stand on their own become classes (`units`, `sharing`, `template`),
the module tree becomes constructor expressions (`tree`, `constructors`, `leaves`), graphs become statements
(`functions`, `body`), and expressions are broken into lines of at most 120 columns (`layout`).
"""

from td_compiler.emission.source import emit_source

__all__ = ["emit_source"]
