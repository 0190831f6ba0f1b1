"""PARL: a reward from preferences between trajectories that the policy itself draws.

Reference: Chakraborty, Bedi, Koppel, Manocha, Wang, Wang, Huang. "PARL: a unified framework for
policy alignment in reinforcement learning from human feedback". ICLR 2024, arXiv:2308.02585.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel.problem import Problem


def problem(
    returns: Callable[[PyTree], Float[Array, " n"]],
    labels: Float[Array, "n n"],
    temperature: ScalarLike,
    *,
    score: bool = True,
) -> Problem:
    """Fit Bradley-Terry labels on pairs that the soft optimal policy draws from n trajectories.

    With p the law of trajectories, y = log p, the upper loss is `Σ_ij p_i p_j ℓ_ij(x)`. Its
    hypergradient has a part through p, by the score function: `Σ_ij p_i p_j ℓ_ij (∇log p_i +
    ∇log p_j)` with `∇log p_i = (∇r_i − E_p ∇r) / τ`.

    Args:
        returns: `x -> r`, the return of each trajectory.
        labels: `labels[i, j]`, how often i is preferred to j.
        score: without it, the part through p is left out, as if the pairs came from elsewhere.
    """
    temperature = jnp.asarray(temperature, labels.dtype)

    def losses(x):
        r = returns(x)
        margin = r[:, None] - r[None]
        return -(labels * jax.nn.log_sigmoid(margin) + (1 - labels) * jax.nn.log_sigmoid(-margin))

    def upper(x, y, batch):
        p = jnp.exp(y)
        return p @ losses(x) @ p

    def lower(x, y, batch):
        y = jax.nn.log_softmax(y)
        return jnp.sum(jnp.exp(y) * (temperature * y - returns(x)))

    def step(x, y, batch):
        return jax.nn.log_softmax(returns(x) / temperature)

    def hypergradient(x, y, batch):
        p = jnp.exp(y)
        by_x = jax.grad(lambda x: p @ losses(x) @ p)(x)
        if not score:
            return by_x
        table = losses(x)
        each = p * (table @ p + table.T @ p)  # cotangent of log p
        _, pull = jax.vjp(returns, x)
        through = pull((each - p * each.sum()) / temperature)[0]
        return jax.tree.map(jnp.add, by_x, through)

    return Problem(upper, lower, lower_step=step, hypergradient=hypergradient)
