"""Outputs of models with tool calls and reasoning in real tokenizers' tokens, and what vLLM's parsers say of them."""
