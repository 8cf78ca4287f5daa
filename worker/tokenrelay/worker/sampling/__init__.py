"""The draw of a token from its scores. Knows no engine."""
