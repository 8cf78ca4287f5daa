"""The worker: claims requests, generates with continuous batching, publishes every token."""
