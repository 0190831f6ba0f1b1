"""Applications against what a person would use today: how good the answer is, and what it took."""

from benchmarks.applications.row import kept, table

__all__ = ["kept", "table"]
