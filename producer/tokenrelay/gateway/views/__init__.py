"""Views: a request's stream as server-sent events, in our own vocabulary or OpenAI's. Pure functions of it."""
