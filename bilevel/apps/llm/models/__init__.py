"""The decoder and what is trained of it: pure functions over dictionaries of arrays."""
