"""Which cases every run takes, and which are left to `make test-all`."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """Cases for `pytest.mark.parametrize`, all but the first few of them marked slow."""
    return [
        case if i < count else pytest.param(case, marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
