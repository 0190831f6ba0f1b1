"""The decoder and its trainable parameters: pure functions of dictionaries of arrays."""
