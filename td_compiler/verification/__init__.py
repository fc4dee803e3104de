"""Whether a conversion is right, check by check."""
