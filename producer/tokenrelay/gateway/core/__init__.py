"""Shared by all routes: the gateway object, FastAPI dependencies, response schemas."""
