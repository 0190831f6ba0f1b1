"""Which cases every run takes, and which are left to `make test-all`."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """Cases for `pytest.mark.parametrize`, all but the first few of them marked slow.

    A case of several arguments is a tuple.
    """
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    later = [pytest.param(*row, marks=pytest.mark.slow) for row in rows[count:]]
    return [*(pytest.param(*row) for row in rows[:count]), *later]
