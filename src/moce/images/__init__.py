"""Pixels in: where pictures come from, and in which order and which cut they reach a model."""
