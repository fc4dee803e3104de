"""What was found and done, as data, tables and pictures."""
