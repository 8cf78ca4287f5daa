"""The default engine: transformers' continuous batching."""
