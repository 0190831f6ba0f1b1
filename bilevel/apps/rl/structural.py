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
from jax.tree_util import Partial
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
    """Maximise the mean of `log π_x(a | s)` over all choices in the records.

    The costs are often near collinear, so the hypergradient is declared times the inverse of the
    Fisher information, which makes x move by Fisher scoring. Pass the problem to `TTSA` with steps
    of at most 1 for x.
    """
    base = irl.problem(mdp, irl.linear(features), irl.of(mdp, choices(records)))
    shares = _counts(mdp, records).sum(axis=1, keepdims=True) / records.actions.size
    slope = Partial(_scoring, mdp, features, shares, base.hypergradient)
    return base.replace(hypergradient=slope)


def _scoring(mdp, features, shares, slope, x, y, batch):
    expected = information(mdp, features, y, shares * soft_policy(mdp, y))
    return jnp.linalg.solve(expected, slope(x, y, batch))


def _counts(mdp: MDP, records: Rollouts) -> Table:
    states, actions = records
    return jnp.zeros(mdp.shape, mdp.kernel.dtype).at[states[:, :-1], actions].add(1.0)


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
    known = information(mdp, features, q, _counts(mdp, records))
    return jnp.sqrt(jnp.diag(jnp.linalg.inv(known)))
