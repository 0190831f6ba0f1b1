"""Smooth games as bilevel problems."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from bilevel.apps.games.security import Payoffs
from bilevel.problem import Problem


def duopoly(demand: float = 10.0, cost: float = 1.0) -> Problem:
    """Two firms with the price `demand − q₁ − q₂`; the first moves first.

    x and y are the quantities, scalars. The leader makes `(demand − cost)/2`, the follower half of
    that.
    """

    def leader(x, y, batch):
        return -(demand - x - y - cost) * x

    def follower(x, y, batch):
        return -(demand - x - y - cost) * y

    return Problem(leader, follower)


def min_max(value: Callable) -> Problem:
    """`min_x max_y value(x, y)` for a value strongly concave in y; g is −value."""
    return Problem(
        Partial(lambda x, y, batch: value(x, y)), Partial(lambda x, y, batch: -value(x, y))
    )


def quantal_response(payoffs: Payoffs, temperature: float) -> Problem:
    """A security game whose attacker takes target t with probability `softmax(U/temperature)_t`.

    x holds logits of the coverage, `softmax(x)` for one resource; y holds logits of the attack. The
    lower loss `½‖y − U/temperature‖²` has them as its minimum.
    """
    attacker, defender = jnp.asarray(payoffs.attacker), jnp.asarray(payoffs.defender)

    def utilities(table: Float[Array, "targets 2"], x):
        cover = jax.nn.softmax(x)
        return cover * table[:, 0] + (1 - cover) * table[:, 1]

    def leader(x, y, batch):
        return -jax.nn.softmax(y) @ utilities(defender, x)

    def follower(x, y, batch):
        return ((y - utilities(attacker, x) / temperature) ** 2).sum() / 2

    return Problem(leader, follower)
