"""Unlearning as a simple bilevel problem: forget first, and then forget as little else as possible.

Of two losses of the same parameters x, one has priority: `min_x R(x)` over the minimisers of
`F`. F is the forget loss and R the retain loss, or the other way round.

Reference: Reisizadeh, Jia, Bu, Vinzamuri, Ramakrishna, Chang, Cevher, Liu, Hong. "BLUR: A bi-level
optimization approach for LLM unlearning". 2025, arXiv:2506.08164.
"""
