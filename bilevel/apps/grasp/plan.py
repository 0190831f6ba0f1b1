"""Plans: descent from given contacts, alone or for many starts at once."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar, ScalarLike

from bilevel.apps.grasp.problem import Outline, forces, problem, wrenches
from bilevel.driver import Result
from bilevel.methods import TTSA
from bilevel.selection import solve


def energy(outline: Outline, x: Float[Array, " n"], *, friction: ScalarLike = 0.1) -> Scalar:
    """`½ ‖G(x) y*(x)‖²`: 0 where the contacts hold the body. Use double precision."""
    y = forces(outline, jnp.asarray(friction, x.dtype), x)
    return jnp.sum((wrenches(outline, x) @ y) ** 2) / 2


def plan(
    outline: Outline,
    x0: Float[Array, " n"],
    *,
    friction: float = 0.1,
    margin: float = 0.1,
    steps: int = 300,
    step_size: float = 0.5,
    **options: Any,
) -> Result:
    """Move contacts along the outline until they hold the body.

    Descent comes to the edge of the contacts that hold, never into their middle: so it plans for a
    friction that is smaller by a share, the margin.

    Args:
        x0: angles, two or more.
        margin: from 0 to 1.
        options: handed to `bl.solve`.

    Raises:
        ValueError: fewer than two contacts, or a friction or margin out of range.
    """
    if x0.ndim != 1 or len(x0) < 2:
        raise ValueError(f"x0 has shape {x0.shape}; a vector of two or more angles is needed.")
    if not (friction > 0 and 0 <= margin < 1):
        raise ValueError(
            f"friction is {friction} and margin {margin}; a friction above 0 and a margin from 0 "
            "to below 1 are needed."
        )
    losses = problem(outline, friction=friction * (1 - margin))
    method = TTSA(x_update=step_size, y_update=1.0)
    return solve(losses, method, x0, jnp.zeros(2 * len(x0), x0.dtype), steps=steps, **options)
