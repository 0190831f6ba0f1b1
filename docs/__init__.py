"""Generators of what the documentation shows."""
