"""The network that comes out, and what can be done with it."""
