"""A console that prints text to the letter."""

from typing import Any

from rich.console import Console


def plain_console(**settings: Any) -> Console:
    """A console that reads no markup and no emoji codes, and colours no numbers."""
    return Console(markup=False, emoji=False, highlight=False, **settings)
