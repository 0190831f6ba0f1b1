"""Structural estimation: the costs behind a record of choices, with their standard errors.

A dynamic discrete choice model with logit errors is a soft policy of temperature 1, so its maximum
likelihood is that of inverse RL.

Reference: Rust. "Optimal replacement of GMC bus engines: an empirical model of Harold Zurcher".
Econometrica 55(5), 1987.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.apps.rl import irl
from bilevel.apps.rl.mdp import MDP, Rollouts, Table, chain, soft_policy
from bilevel.problem import Problem

KEEP, REPLACE = 0, 1


class Replacement(NamedTuple):
    """When to replace an engine: `reward = features · (RC, θ₁)`."""

    mdp: MDP
    features: Float[Array, "bins 2 2"]


def replacement(
    bins: int = 90, increments: Sequence[float] = (0.35, 0.64, 0.01), *, discount: float = 0.99
) -> Replacement:
    """Mileage in bins; to keep an engine at bin b costs `θ₁ b / (bins − 1)`, to replace it RC.

    Args:
        increments: probabilities that mileage grows by 0, 1, ... bins; a replaced engine starts at
            bin 0 and grows as well. The last bin holds what lies beyond.

    Raises:
        ValueError: increments are no probabilities.
    """
    if min(increments) < 0 or abs(sum(increments) - 1) > 1e-9:
        raise ValueError(f"increments {tuple(increments)} must be probabilities of sum 1.")
    kernel = np.zeros((bins, 2, bins))
    for grown, chance in enumerate(increments):
        for b in range(bins):
            kernel[b, KEEP, min(b + grown, bins - 1)] += chance
        kernel[:, REPLACE, min(grown, bins - 1)] += chance
    features = np.zeros((bins, 2, 2))
    features[:, KEEP, 1] = -np.linspace(0, 1, bins)
    features[:, REPLACE, 0] = -1
    mdp = MDP(jnp.asarray(kernel), jnp.eye(bins)[0], discount, 1.0)
    return Replacement(mdp, jnp.asarray(features))


def choices(records: Rollouts) -> Rollouts:
    """Each choice as a record of its own, so that all count alike, without discount."""
    states, actions = records
    pairs = jnp.stack([states[:, :-1].ravel(), states[:, 1:].ravel()], axis=1)
    return Rollouts(pairs, actions.reshape(-1, 1))


def problem(mdp: MDP, features: Float[Array, "states actions d"], records: Rollouts) -> Problem:
    """Maximise the mean of `log π_x(a | s)` over all choices in the records. Pass it to `TTSA`."""
    return irl.problem(mdp, irl.linear(features), irl.of(mdp, choices(records)))


def information(
    mdp: MDP, features: Float[Array, "states actions d"], q: Table, counts: Table
) -> Float[Array, "d d"]:
    """Fisher information about x in choices: `Σ n(s, a) ∇log π ∇log πᵀ`, at the soft optimum Q.

    Args:
        counts: how often each action was taken in each state.
    """
    policy = soft_policy(mdp, q)
    v_x = jnp.linalg.solve(chain(mdp, policy), jnp.einsum("sa,sad->sd", policy, features))
    q_x = features + mdp.discount * jnp.einsum("sat,td->sad", mdp.kernel, v_x)
    scores = (q_x - v_x[:, None]) / mdp.temperature
    return jnp.einsum("sa,sad,sae->de", counts, scores, scores)


def standard_errors(
    mdp: MDP, features: Float[Array, "states actions d"], q: Table, records: Rollouts
) -> Float[Array, " d"]:
    """Of the maximum-likelihood estimate, from the outer products of the scores.

    Args:
        q: the soft optimum at the estimate.
    """
    states, actions = records
    counts = jnp.zeros(mdp.shape, q.dtype).at[states[:, :-1], actions].add(1.0)
    return jnp.sqrt(jnp.diag(jnp.linalg.inv(information(mdp, features, q, counts))))
