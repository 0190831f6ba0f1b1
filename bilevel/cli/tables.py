"""Tables for the terminal, and JSON for machines."""

import json
import sys
from typing import Any

from rich import box
from rich.table import Table


def new_table(title: str, **options) -> Table:
    """The look that all our tables share."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        **options,
    )


def write_json(content: Any) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps(content) + "\n")
