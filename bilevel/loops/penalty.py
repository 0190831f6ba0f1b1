"""Two lower iterates side by side: the minimiser of g, and that of g + f/penalty."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import oracles, trees
from bilevel.problem import Problem, Samples
from bilevel.schedules import Count
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate


class Pair(NamedTuple):
    """Where both descents ended."""

    y: Lower  # near the minimiser of g + f/penalty
    z: Lower  # near the minimiser of g
    memory: tuple[Any, Any]  # what the y and z updates remember
    grad_norm: Scalar  # ‖∇_y g‖ at the last z a gradient was taken


def descend_pair(
    problem: Problem,
    x: Upper,
    y: Lower,
    z: Lower,
    upper: Samples,
    lower_y: Samples,
    lower_z: Samples,
    *,
    updates: tuple[AbstractUpdate, AbstractUpdate],
    memory: tuple[Any, Any],
    penalty: Scalar,
    steps: int,
    k: Count,
) -> Pair:
    """`steps` times `z ← P_Y(z − c ∇_y g(x, z))`, `y ← P_Y(y − b (∇_y g + ∇_y f/penalty)(x, y))`.

    Common samples are `lower_y is lower_z`: they cut the noise of differences of y and z.
    """
    y_update, z_update = updates

    def body(carry, t):
        y, z, (sy, sz) = carry
        g_z = oracles.lower_grad(problem, x, z, lower_z[t])
        g_y = oracles.lower_grad(problem, x, y, lower_y[t])
        f_y = oracles.upper_grad_y(problem, x, y, upper[t])
        z, sz = z_update.step(g_z, sz, z, k)
        y, sy = y_update.step(trees.axpy(1 / penalty, f_y, g_y), sy, y, k)
        y, z = problem.lower_set.project(y, x), problem.lower_set.project(z, x)
        return (y, z, (sy, sz)), trees.norm(g_z)

    (y, z, memory), norms = jax.lax.scan(body, (y, z, memory), jnp.arange(steps))
    return Pair(y, z, memory, norms[-1])
