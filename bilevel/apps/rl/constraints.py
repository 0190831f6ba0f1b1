"""Rewards under constraints: multipliers above a policy held near a reference.

Reference: Moskovitz, Singh, Strouse, Sandholm, Salakhutdinov, Dragan, McAleer. "Confronting reward
model overoptimization with constrained RLHF". ICLR 2024, arXiv:2310.04373.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from bilevel import sets
from bilevel.problem import Problem


def problem(
    reference: Float[Array, " n"],
    reward: Float[Array, " n"],
    others: Float[Array, "m n"],
    limits: Float[Array, " m"],
    beta: ScalarLike,
) -> Problem:
    """`max_π E[reward] − β KL(π ‖ reference)` subject to `E[others] ≤ limits`, by its dual.

    x ≥ 0 are the m multipliers, and y = log π with `π ∝ reference exp((reward − x · others) / β)`.
    The upper loss is the dual function `β log Σ reference exp(…) + x · limits`, convex, whose
    gradient is `limits − E[others]`.
    """
    beta = jnp.asarray(beta, reward.dtype)

    def tilted(x):
        return jnp.log(reference) + (reward - x @ others) / beta

    def upper(x, y, batch):
        return beta * jax.nn.logsumexp(tilted(x)) + x @ limits

    def lower(x, y, batch):
        y = jax.nn.log_softmax(y)
        return beta * jnp.sum(jnp.exp(y) * (y - tilted(x)))

    return Problem(
        upper,
        lower,
        upper_set=sets.Box(0.0, jnp.inf),
        lower_step=lambda x, y, batch: jax.nn.log_softmax(tilted(x)),
        hypergradient=lambda x, y, batch: limits - others @ jnp.exp(y),
    )
