"""Offline inverse RL: the dynamics are learned from recorded transitions, and are not trusted.

The policy is learned in the model with a penalty where an ensemble of models disagrees; the reward
is learned from demonstrations as always. Without the penalty a policy may go where nobody has been,
since a model that knows nothing promises anything.

Reference: Zeng, Li, Garcia, Hong. "When demonstrations meet generative world models: a maximum
likelihood framework for offline inverse reinforcement learning". NeurIPS 2023, arXiv:2302.07457.
Differs from it: models are tables drawn from their posterior.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float, PyTree, ScalarLike

from bilevel.apps.rl import irl
from bilevel.apps.rl.mdp import MDP, Rollouts, Table
from bilevel.problem import Problem


class Model(NamedTuple):
    """What transitions say about dynamics."""

    mdp: MDP  # the mean of the ensemble
    doubt: Table  # mean over next states of the ensemble's standard deviation


def model(
    mdp: MDP,
    records: Rollouts,
    *,
    seed: int = 0,
    members: int = 7,
    prior: float | Float[np.ndarray, "states actions states"] = 0.05,
) -> Model:
    """An ensemble of kernels, each drawn from a Dirichlet posterior.

    Args:
        mdp: for its start, discount and temperature; its kernel is not read.
        records: transitions of any policies.
        prior: counts added to each next state: small, as most next states never happen. A table
            says what is believed of moves that nobody has made.
    """
    states, actions = (np.asarray(part) for part in records)
    seen = np.array(np.broadcast_to(prior, mdp.kernel.shape), float)
    np.add.at(seen, (states[:, :-1], actions, states[:, 1:]), 1.0)
    draws = np.random.default_rng(seed).gamma(seen, size=(members, *seen.shape))
    kernels = draws / draws.sum(axis=-1, keepdims=True)
    mean = jnp.asarray(seen / seen.sum(axis=-1, keepdims=True))
    doubt = jnp.asarray(kernels.std(axis=0).mean(axis=-1))
    return Model(MDP(mean, mdp.start, mdp.discount, mdp.temperature), doubt)


def pessimistic(
    reward: Callable[[PyTree], Table], doubt: Table, penalty: ScalarLike
) -> Callable[[PyTree], Table]:
    """`r(x) − penalty · doubt`, which the policy in the model is optimal for."""
    return Partial(_less, Partial(reward), jnp.asarray(penalty, doubt.dtype) * doubt)


def _less(reward, penalty, x):
    return reward(x) - penalty


def problem(
    found: Model,
    reward: Callable[[PyTree], Table],
    demos: irl.Visits,
    penalty: ScalarLike,
    *,
    decay: ScalarLike = 0.0,
) -> Problem:
    """Maximum likelihood of demonstrations under the policy that is optimal in the model.

    The upper loss is the surrogate `(ρ · V_x − c · r_x) / τ` with the values of the pessimistic
    model, whose gradient is exact. Pass the problem to `TTSA`.
    """
    return irl.problem(found.mdp, pessimistic(reward, found.doubt, penalty), demos, decay=decay)
