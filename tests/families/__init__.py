"""Tiny random folders of every causal architecture that transformers has, served through our engine."""
