"""Views: encoders from a request's stream to server-sent events in our format or OpenAI's. Pure functions."""
