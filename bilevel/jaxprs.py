"""What traced functions hold."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The functions that an operation calls."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Jaxpr | ClosedJaxpr):
                yield one.jaxpr if isinstance(one, ClosedJaxpr) else one


def closed_over(jaxpr: Jaxpr) -> int:
    """Entries of the arrays that the function closes over, nested functions included."""
    own = sum(math.prod(getattr(var.aval, "shape", ())) for var in jaxpr.constvars)
    return own + sum(closed_over(one) for eqn in jaxpr.eqns for one in inner(eqn.params))
