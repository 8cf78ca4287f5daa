"""Layers of a model that this engine computes itself: attention, linear layers, rotary embeddings."""
