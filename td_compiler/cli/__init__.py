"""The command line `tdc`."""
