"""What shows results: tables, figures, the report."""
