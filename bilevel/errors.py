"""Errors that say nothing against what was typed or given: the mathematics does not go through.

The commands end with 1 on these, and with 2 on any other `ValueError` (a bad file, name or option).
"""


class Refused(ValueError):
    """What was given is well formed, and what was asked for cannot be done with it."""


class Failed(RuntimeError):
    """A computation did not reach what it needs to go on."""
