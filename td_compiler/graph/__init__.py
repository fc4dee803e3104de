"""What the passes share: operator table, units and stages, the state of a conversion, the network's style."""
