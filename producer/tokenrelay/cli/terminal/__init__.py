"""Terminal output: text, JSON lines, errors and exit codes; tables and percentiles."""
