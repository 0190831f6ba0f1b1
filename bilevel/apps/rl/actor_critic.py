"""TT-NAC: an actor that moves by a mirror step, above a critic that learns by temporal differences.

Reference: Hong, Wai, Wang, Yang. "A two-timescale stochastic algorithm framework for bilevel
optimization: complexity analysis and application to actor-critic". SIAM J. Optim. 33(1), 2023.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ScalarLike

from bilevel.apps.rl.mdp import MDP, Table, backup, draw, evaluate
from bilevel.data import Data
from bilevel.fields import NONNEGATIVE
from bilevel.problem import Problem
from bilevel.schedules import AbstractSchedule, as_schedule
from bilevel.updates import AbstractUpdate


class Mirror(AbstractUpdate):
    """`p ← p exp(−a_k d) / Σ`: a step in the geometry of entropy, for rows of probabilities."""

    step_size: AbstractSchedule = eqx.field(converter=as_schedule, metadata=NONNEGATIVE)

    def init(self, tree):
        return None

    def step(self, direction, memory, tree, k):
        def move(d, p):
            return jax.nn.softmax(jnp.log(p) - self.step_size(k).astype(p.dtype) * d, axis=-1)

        return jax.tree.map(move, direction, tree), memory


def problem(mdp: MDP, reward: Table, beta: ScalarLike) -> Problem:
    """Maximise the discounted reward over policies x, with y the table Q of the policy.

    A lower step is a TD(0) update of size `beta` for each transition of the batch, in turn. The
    hypergradient is `−Q`, the natural gradient up to the factor `1 / (1 − γ)`; take `Mirror` for
    x. `transitions` makes the batches.
    """

    def upper(x, y, batch):
        return -jnp.sum(mdp.start * jnp.sum(x * y, axis=1))

    def lower(x, y, batch):
        return jnp.sum((y - backup(mdp, reward, jnp.sum(x * y, axis=1))) ** 2) / 2

    def critic(x, y, batch):
        acts = jnp.cumsum(x, axis=1)
        size = jnp.asarray(beta, y.dtype)

        def learn(y, one):
            following = draw(acts[one.to][None], one.u[None])[0]
            target = reward[one.state, one.action] + mdp.discount * y[one.to, following]
            error = y[one.state, one.action] - target
            return y.at[one.state, one.action].add(-size * error), None

        return jax.lax.scan(learn, y, batch)[0]

    return Problem(upper, lower, lower_step=critic, hypergradient=lambda x, y, batch: -y)


class Transitions(NamedTuple):
    """Where states and actions led, and a number that decides the action after."""

    state: Array
    action: Array
    to: Array
    u: Array


def transitions(mdp: MDP, n: int) -> Data:
    """n transitions a step, from states and actions drawn uniformly."""
    return Data(lower=Partial(_transitions, mdp, jnp.zeros(n)))


def _transitions(mdp, shape, key):
    states, actions = mdp.shape
    n, keys = len(shape), jax.random.split(key, 4)
    s = jax.random.randint(keys[0], (n,), 0, states)
    a = jax.random.randint(keys[1], (n,), 0, actions)
    moves = jnp.cumsum(mdp.kernel[s, a], axis=1)
    to = draw(moves, jax.random.uniform(keys[2], (n,)))
    return Transitions(s, a, to, jax.random.uniform(keys[3], (n,)))


def value(mdp: MDP, reward: Table, policy: Table):
    """The discounted reward of a policy, without entropy."""
    return mdp.start @ evaluate(mdp, reward, policy, entropy=False)


def best_value(mdp: MDP, reward: Table, *, steps: int = 100):
    """The largest discounted reward of any policy, by policy iteration."""

    def improve(_, policy):
        q = backup(mdp, reward, evaluate(mdp, reward, policy, entropy=False))
        return jax.nn.one_hot(jnp.argmax(q, axis=1), mdp.shape[1], dtype=q.dtype)

    start = jax.nn.one_hot(jnp.argmax(reward, axis=1), mdp.shape[1], dtype=reward.dtype)
    return value(mdp, reward, jax.lax.fori_loop(0, steps, improve, start))
