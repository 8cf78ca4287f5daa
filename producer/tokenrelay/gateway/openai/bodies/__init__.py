"""Parsing of OpenAI's request bodies into our request options."""
