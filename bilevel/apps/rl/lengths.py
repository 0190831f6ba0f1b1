"""PALU: the shortest reasoning that is still right often enough.

    min over π  E[length]   subject to   P(right) ≥ level   for every type of prompt

The multiplier of the constraint is cut down to its two extremes, ignore it or see nothing else, and
the upper variable is a budget of steps for each type. Above: where the share of right responses
within the budget is high enough, the budget becomes a quantile of the lengths of those, else all
that there is. Below: the policy is the best one, but for an entropy, for the reward "right, and
within the budget". A budget settles where one step less is wrong too often, as in `chain`; where
the chance to be right rises slowly it swings between that length and all that there is.

Reference: Gao et al. "Concise reasoning in the lens of Lagrangian optimization". 2025,
arXiv:2510.10168.
Differs from the paper: the policy is a table over lengths, found exactly in place of GRPO steps,
and responses are drawn by it alone.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from bilevel.data import Data
from bilevel.methods import TTSA
from bilevel.problem import Problem

Drawn = tuple[Int[Array, "types g"], Bool[Array, "types g"]]  # lengths, and whether right


def chain(hops: Int[Array, " types"], longest: int, guess: ScalarLike = 0.25) -> Array:
    """Chances `(types, longest)` to be right after 1, 2, … steps, where so many hops are needed.

    Each step makes a hop, and the hops that are left out are guessed, right with a chance of
    `guess` each.
    """
    missing = jnp.maximum(hops[:, None] - jnp.arange(1, longest + 1)[None], 0)
    guess = jnp.asarray(guess, float)
    return guess ** missing.astype(guess.dtype)


def problem(
    chances: Float[Array, "types longest"],
    level: ScalarLike = 0.9,
    *,
    quantile: ScalarLike = 0.5,
    temperature: ScalarLike = 0.05,
) -> Problem:
    """Budgets x `(types,)` above logits y `(types, longest)` of the lengths 1, 2, …

    Args:
        chances: to be right at each length, not falling in the length.
        level: share of right responses that is asked for.
        quantile: of the lengths of right responses; the smaller, the bolder.
        temperature: weight of the entropy below, in shares of right responses.
    """
    chances = jnp.asarray(chances, float)
    rules = tuple(jnp.asarray(number, float) for number in (level, quantile, temperature))
    return Problem(
        Partial(_length, chances),
        Partial(_wrong, chances, rules),
        hypergradient=Partial(_above, chances, rules),
        lower_step=Partial(_best, chances, rules),
    )


def method() -> TTSA:
    """Each step finds the policy of the budgets, then sets the budgets anew."""
    return TTSA(1.0)


def data(types: int, responses: int = 16) -> Data:
    """Random numbers for so many responses to each type of prompt."""
    return Data(upper=Partial(_draws, jnp.zeros((2, types, responses))))


def _draws(like, key):
    return jax.random.uniform(key, like.shape)


def _length(chances, x, y, batch):
    return jnp.sum(jax.nn.softmax(y) * _steps(y)[None])


def _steps(y):
    return jnp.arange(1, y.shape[1] + 1, dtype=y.dtype)


def _reward(chances, x):
    """Expected reward of every length."""
    return jnp.where(_steps(chances)[None] <= x.astype(chances.dtype)[:, None], chances, 0)


def _wrong(chances, rules, x, y, batch):
    """Minus the expected reward and the entropy."""
    policy = jax.nn.softmax(y)
    reward = _reward(chances, x).astype(y.dtype) - rules[2].astype(y.dtype) * jax.nn.log_softmax(y)
    return -jnp.sum(policy * reward)


def _best(chances, rules, x, y, batch):
    return (_reward(chances, x) / rules[2]).astype(y.dtype)


def _drawn(chances, y, batch) -> Drawn:
    """Responses of the policy to every type of prompt."""
    ends = jnp.cumsum(jax.nn.softmax(y), axis=1)
    at = jnp.sum(batch[0][:, :, None] > ends[:, None, :-1], axis=2)
    return at + 1, batch[1] < jnp.take_along_axis(chances, at, axis=1)


def _above(chances, rules, x, y, batch):
    """`x − the new budget`: a step of size 1 sets it."""
    level, quantile, _ = rules
    lengths, right = _drawn(chances, y, batch.upper)
    good = right & (lengths.astype(x.dtype) <= x[:, None])
    count, longest = good.sum(axis=1), y.shape[1]
    ordered = jnp.sort(jnp.where(good, lengths, longest), axis=1)
    at = jnp.maximum(jnp.ceil(quantile * count.astype(quantile.dtype)).astype(int) - 1, 0)
    shorter = jnp.take_along_axis(ordered, at[:, None], axis=1)[:, 0]
    enough = count.astype(level.dtype) >= level * good.shape[1]
    return x - jnp.where(enough, shorter, longest).astype(x.dtype)
