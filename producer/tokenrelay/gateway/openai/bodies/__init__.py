"""OpenAI's request bodies, as clients send them, read into requests of ours."""
