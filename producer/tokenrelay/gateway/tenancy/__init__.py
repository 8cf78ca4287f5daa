"""API keys, and what each may have running."""
