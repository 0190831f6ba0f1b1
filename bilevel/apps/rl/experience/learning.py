"""One step of the reward and one of the policy for each piece of feedback."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, ScalarLike

from bilevel.apps.rl.experience.feedback import Arrays, Kind
from bilevel.methods import TTSA
from bilevel.problem import Problem

Table = Float[Array, "prompts responses"]


class Learner(NamedTuple):
    """How fast to learn. Constant steps follow a user who changes."""

    reward_step: ScalarLike = 0.2
    policy_step: ScalarLike = 0.2  # from 0 to 1, where 1 is the optimum for the present reward
    beta: ScalarLike = 0.3  # weight of the divergence from the reference
    farthest: ScalarLike = 10.0  # largest KL divergence from the reference at a prompt


def problem(reference: Table, learner: Learner = Learner()) -> Problem:
    """The two levels of learning from feedback, for tables of prompts and responses.

    x is the reward, y the log policy. A lower step is `y ← (1 − η) y + η (log reference + x / β)`,
    normalised, and drawn back to `KL ≤ farthest`. The hypergradient is the slope of what one piece
    of feedback says: Bradley-Terry for a preference, squared error for a scalar, and for a
    correction the contrast of the response wanted with those of the policy.
    """
    learner = Learner(*(jnp.asarray(number, reference.dtype) for number in learner))
    return Problem(
        Partial(_surprise, learner),
        Partial(_lower, learner, reference),
        lower_step=Partial(_mirror, learner, reference),
        hypergradient=Partial(_slope, learner),
    )


def method(learner: Learner = Learner()) -> TTSA:
    return TTSA(x_update=learner.reward_step)


def _surprise(learner, x, y, batch: Arrays):
    """The loss of one piece of feedback."""
    row = x[batch.prompt]
    margin = row[batch.first] - row[batch.second]
    value = batch.value
    each = jnp.stack([
        -value * jax.nn.log_sigmoid(margin) - (1 - value) * jax.nn.log_sigmoid(-margin),
        (row[batch.first] - value) ** 2 / 2,
        (jnp.exp(jax.lax.stop_gradient(y[batch.prompt])) @ row - row[batch.second]) / learner.beta,
    ])  # fmt: skip
    return each[batch.kind]


def _slope(learner, x, y, batch):
    slope = jax.grad(_surprise, argnums=1)(learner, x, y, batch.upper)
    return slope - jnp.where(batch.upper.kind == Kind.SCALAR, 0, slope.mean(axis=1, keepdims=True))


def _lower(learner, reference, x, y, batch):
    y = jax.nn.log_softmax(y)
    return jnp.sum(jnp.exp(y) * (learner.beta * (y - jnp.log(reference)) - x))


def _mirror(learner, reference, x, y, batch):
    base, eta = jnp.log(reference), learner.policy_step
    moved = (1 - eta) * y + eta * (base + x / learner.beta)
    return jax.vmap(Partial(_near, learner.farthest))(base, moved)


def _near(farthest, base, moved):
    """The closest to `moved` on the way from the reference within the divergence, by halving."""

    def part(share):
        return jax.nn.log_softmax(base + share * (moved - base))

    def far(share):
        y = part(share)
        return jnp.sum(jnp.exp(y) * (y - base)) > farthest

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        return jnp.where(far(middle), low, middle), jnp.where(far(middle), middle, high)

    one = jnp.ones((), base.dtype)
    low, _ = jax.lax.fori_loop(0, 20, halve, (0 * one, one))
    return part(jnp.where(far(one), low, one))
