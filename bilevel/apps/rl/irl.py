"""Maximum-likelihood inverse reinforcement learning as a problem of two levels."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.rl.mdp import (
    MDP,
    Rollouts,
    Table,
    backup,
    occupancy,
    policy_iteration,
    rollouts,
    soft_policy,
    soft_values,
    value_iteration,
)
from bilevel.data import Data
from bilevel.problem import Problem
from bilevel.typing import RandomKey


class Visits(NamedTuple):
    """What demonstrations say, all that the upper loss needs of them.

    `of` makes them from trajectories, `of_policy` from a policy known in full.
    """

    counts: Table  # discounted visits, the mean over demonstrations
    ends: Float[Array, " states"]  # law of the first states, minus γ^T times that of the last


def of_policy(mdp: MDP, policy: Table) -> Visits:
    """The expected visits of infinitely many demonstrations without end."""
    return Visits(occupancy(mdp, policy), mdp.start)


def of(mdp: MDP, demos: Rollouts, lengths: Array | None = None) -> Visits:
    """The discounted visits of trajectories.

    Args:
        lengths: the number of actions of each; what stands after them is not read. All when
            absent.
    """
    states, actions = demos
    n, length = actions.shape
    lengths = jnp.full(n, length) if lengths is None else lengths
    powers = mdp.discount ** jnp.arange(length + 1, dtype=float)
    weights = jnp.where(jnp.arange(length)[None] < lengths[:, None], powers[None, :-1], 0.0) / n
    counts = jnp.zeros(mdp.shape, weights.dtype).at[states[:, :-1], actions].add(weights)
    last = jnp.take_along_axis(states, lengths[:, None], axis=1)[:, 0]
    ends = jnp.zeros(mdp.shape[0], weights.dtype).at[states[:, 0]].add(1 / n)
    return Visits(counts, ends.at[last].add(-powers[lengths] / n))


def linear(features: Float[Array, "states actions d"]) -> Callable[[Array], Table]:
    """The reward `features · x`, as a function of x."""
    return Partial(jnp.matmul, features)


def problem(
    mdp: MDP,
    reward: Callable[[PyTree], Table],
    visits: Visits | None = None,
    *,
    exact: bool = True,
    decay: ScalarLike = 0.0,
) -> Problem:
    """Maximum likelihood of demonstrations over x, the parameters of a reward.

    y is the table Q of the soft optimal policy `exp((Q − V) / τ)`. With c the discounted counts of
    demonstrations and ρ their ends, `E[Σ_{t<T} γ^t log π(a_t | s_t)] = (c · r_x − ρ · V_x) / τ`
    exactly, so the upper loss minimises `(ρ · V − c · r_x) / τ`. Its hypergradient is the visits
    of the policy, started from ρ, minus c, through the derivative of r: no Hessian. Pass the
    problem to `TTSA`.

    Args:
        reward: `x -> table`, such as `linear(features)`.
        visits: of the demonstrations; `None` if they come as batches, as from `sampled`.
        exact: whether a lower step evaluates the policy by a linear solve, otherwise it is a
            single soft Bellman backup.
        decay: weight of half the squared x, which keeps it finite where data do not.

    Reference: Zeng, Li, Garcia, Hong. "Maximum-likelihood inverse reinforcement learning with
    finite-time guarantees". NeurIPS 2022, arXiv:2210.01808.
    """
    reward, decay = Partial(reward), jnp.asarray(decay, mdp.kernel.dtype)
    move = Partial(policy_iteration if exact else value_iteration, mdp)
    return Problem(
        Partial(_upper, mdp, reward, visits, decay),
        Partial(_lower, mdp, reward),
        lower_step=Partial(_step, move, reward),
        hypergradient=Partial(_contrast, mdp, reward, visits, decay),
    )


def _upper(mdp, reward, visits, decay, x, y, batch):
    c, ends = visits if visits is not None else batch.expert
    unlikely = (ends @ soft_values(mdp, y) - jnp.sum(c * reward(x))) / mdp.temperature
    return unlikely + decay / 2 * trees.dot(x, x)


def _lower(mdp, reward, x, y, batch):
    """Half the squared Bellman error, zero at the solution alone."""
    error = y - backup(mdp, reward(x), soft_values(mdp, y))
    return jnp.sum(error**2) / 2


def _step(move, reward, x, y, batch):
    return move(reward(x), y)


def _contrast(mdp, reward, visits, decay, x, y, batch):
    if visits is None:
        counts, ends, key = *batch.upper.expert, batch.upper.key
        n, length = batch.upper.shape.shape
        agent = of(mdp, rollouts(mdp, soft_policy(mdp, y), key, n, length)).counts
    else:
        counts, ends = visits
        agent = occupancy(mdp, soft_policy(mdp, y), ends)
    _, pull = jax.vjp(reward, x)
    return trees.axpy(decay, x, pull((agent - counts) / mdp.temperature)[0])


class Sampled(NamedTuple):
    """A batch of `sampled`: trajectories of the expert, and randomness for the agent's."""

    expert: Visits
    key: RandomKey
    shape: Array  # zeros, as many rows and columns as the agent's trajectories


def sampled(mdp: MDP, expert: Table, n: int, length: int) -> Data:
    """n trajectories of an expert policy at each step, and as many of the agent."""
    return Data(upper=Partial(_sample, mdp, expert, jnp.zeros((n, length))))


def _sample(mdp, expert, shape, key):
    first, second = jax.random.split(key)
    return Sampled(of(mdp, rollouts(mdp, expert, first, *shape.shape)), second, shape)


def log_likelihood(mdp: MDP, policy: Table, visits: Visits) -> Array:
    """`E[Σ_t γ^t log π(a_t | s_t)]` over the demonstrations."""
    return jnp.sum(jnp.where(visits.counts > 0, visits.counts * jnp.log(policy), 0.0))
