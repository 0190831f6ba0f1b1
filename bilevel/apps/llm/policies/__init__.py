"""Policies, which can be sampled and scored."""
