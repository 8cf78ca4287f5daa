"""Structured output: grammars, and the mask of the tokens that may follow an answer. Knows no engine and no Redis."""
