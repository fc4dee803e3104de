"""Attacks, and the corruptions that stand beside them."""
