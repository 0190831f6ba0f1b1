"""Policies: what can be sampled and scored."""
