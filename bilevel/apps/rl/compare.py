"""What inverse reinforcement learning is compared with, and how far a policy or reward is off."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar
from scipy.optimize import minimize

from bilevel.apps.rl.irl import Visits
from bilevel.apps.rl.mdp import MDP, Table, backup, occupancy


def clone(visits: Visits, smoothing: float = 1.0) -> Table:
    """Behaviour cloning: the actions' shares in each state, after adding `smoothing` to counts.

    Args:
        visits: with counts that are not means, as `visits.counts * demonstrations`.
    """
    counts = visits.counts + smoothing
    return counts / counts.sum(axis=1, keepdims=True)


def maximum_entropy(
    mdp: MDP,
    reward: Callable[[Array], Table],
    counts: Table,
    starts: Float[Array, " states"],
    length: int,
    x0: Array,
) -> Array:
    """Maximum-entropy IRL over trajectories of `length` actions, without discount: x.

    Matches the features of the demonstrations by L-BFGS on the dual, `ρ · V_0(x) − c · r_x`.

    Args:
        counts: undiscounted visits, the mean over demonstrations.
        starts: law of their first states.

    Reference: Ziebart, Bagnell, Dey. "Modeling interaction via the principle of maximum causal
    entropy". ICML 2010.
    """

    def dual(x):
        r = reward(x)

        def before(values, _):
            q = (r + mdp.kernel @ values) / mdp.temperature
            return mdp.temperature * jax.nn.logsumexp(q, axis=1), None

        first, _ = jax.lax.scan(before, jnp.zeros(mdp.shape[0], r.dtype), None, length=length)
        return (starts @ first - jnp.sum(counts * r)) / length

    slope = jax.jit(jax.value_and_grad(dual))
    shape = np.shape(x0)

    def on_host(flat):
        value, grad = slope(jnp.asarray(flat.reshape(shape), x0.dtype))
        return float(value), np.asarray(grad, np.float64).ravel()

    found = minimize(on_host, np.ravel(x0), jac=True, method="L-BFGS-B")
    return jnp.asarray(found.x.reshape(shape), x0.dtype)


def occupancy_kl(mdp: MDP, expert: Table, policy: Table) -> Scalar:
    """KL divergence of the normalised discounted visits of an expert from those of a policy."""
    p, q = ((1 - mdp.discount) * occupancy(mdp, one) for one in (expert, policy))
    return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p / q, 1.0)), 0.0))


def shaping(mdp: MDP, potential: Float[Array, " states"]) -> Table:
    """`γ E[φ(s') | s, a] − φ(s)`: added to a reward, it leaves the soft optimal policy as it is."""
    return backup(mdp, -potential[:, None], potential)


def reshaped(mdp: MDP, reward: Table, other: Table) -> Table:
    """`other` after the shaping that brings it closest to `reward`."""
    basis = jax.vmap(lambda e: shaping(mdp, e).ravel())(jnp.eye(mdp.shape[0], dtype=reward.dtype)).T
    return other + (basis @ jnp.linalg.lstsq(basis, (reward - other).ravel())[0]).reshape(mdp.shape)


def distance(mdp: MDP, reward: Table, other: Table) -> Scalar:
    """Root mean square of `reward − other` after the best shaping of the other.

    Zero exactly if both have the same soft optimal policy.
    """
    gap = reward - reshaped(mdp, reward, other)
    return jnp.linalg.norm(gap) / jnp.sqrt(jnp.asarray(gap.size, gap.dtype))
