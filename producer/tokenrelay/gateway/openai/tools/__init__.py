"""Tools in OpenAI's shapes: calls in a conversation, and the tools that a request offers."""
