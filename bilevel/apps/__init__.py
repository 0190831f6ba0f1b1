"""Applications: each builds a problem, loads or takes data, and picks settings that work."""

from bilevel.apps import cleaning as cleaning

__all__ = ["cleaning"]
