"""Numbers as people write them."""

import math
from typing import Any


def shown(value: Any, spec: str = "") -> str:
    """The text of a table cell: empty for `None`, a dash for NaN."""
    if value is None:
        return ""
    if isinstance(value, float) and math.isnan(value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    text = format(value, spec or (",d" if isinstance(value, int) else ".4g"))
    return f"{value:,.0f}" if "e+0" in text and abs(value) < 1e6 else text.removesuffix(".")
