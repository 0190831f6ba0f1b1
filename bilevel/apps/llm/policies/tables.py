"""Divergence and optimal policy of tables of log-probabilities, one row per prompt."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar, ScalarLike

Table = Float[Array, "prompts responses"]


def optimum(log_reference: Table, rewards: Table, beta: ScalarLike) -> Table:
    """Log-probabilities of `π* ∝ π_ref exp(r/β)`, the maximiser of `E r − β KL(π‖π_ref)`."""
    beta = jnp.asarray(beta, rewards.dtype)
    return jax.nn.log_softmax(log_reference + rewards / beta, axis=-1)


def kl(log_p: Table, log_q: Table) -> Scalar:
    """`KL(p‖q)` of responses, averaged over the prompts."""
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()


def expected(log_p: Table, rewards: Table) -> Scalar:
    """`E_p r`, averaged over the prompts."""
    return (jnp.exp(log_p) * rewards).sum(axis=-1).mean()


def objective(log_p: Table, log_reference: Table, rewards: Table, beta: ScalarLike) -> Scalar:
    """`E_p r − β KL(p‖π_ref)`, averaged over the prompts."""
    beta = jnp.asarray(beta, rewards.dtype)
    return expected(log_p, rewards) - beta * kl(log_p, log_reference)
