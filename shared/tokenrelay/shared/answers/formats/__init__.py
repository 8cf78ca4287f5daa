"""Formats of tool calls and of reasoning: a parser each, over an answer's pieces."""
