"""Demonstrations and preferences: files, token ids, batches."""
