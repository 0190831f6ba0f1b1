"""The lower level where actions are numbers: a soft actor and two critics, from moves it keeps.

A step plays some moves, keeps them in place of the oldest, and fits to draws from what is kept:
the critics to what moves earn under the present reward, and the actor to the critics.

Reference: Haarnoja et al. "Soft actor-critic algorithms and applications". 2018, arXiv:1812.05905.
Differs from it: the temperature is given, what has ended has a value of its own, and critics follow
soft λ-returns along the moves of one copy, as if the policy had not changed since. So what they
tend to is a mixture of the soft values of this policy and of those that made the moves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from bilevel import trees
from bilevel.apps.rl.mdp import as_float
from bilevel.apps.rl.neural import actions, networks
from bilevel.apps.rl.neural.actions import Box
from bilevel.apps.rl.neural.environments import Environment
from bilevel.apps.rl.neural.rollouts import Places, Steps, rollout, start
from bilevel.typing import RandomKey
from bilevel.updates import AbstractUpdate, FromOptax

SHARPEST, WIDEST = -4.0, 1.0  # log of the standard deviation, before tanh


class Moves(NamedTuple):
    """Transitions; of what is kept, the first axes are lower steps, time and copies."""

    before: Float[Array, "*n d"]
    action: Float[Array, "*n m"]
    after: Float[Array, "*n d"]
    log: Float[Array, "*n"]  # density of the action, under the policy that made it
    ended: Bool[Array, "*n"]
    reset: Bool[Array, "*n"]


class Memory(NamedTuple):
    places: Places
    moves: Moves
    target: PyTree  # critics that follow slowly
    update: Any
    k: Array


class Gaussian(NamedTuple):
    """`a = tanh(mean + e^log_std z)` with z standard normal."""

    mean: Float[Array, "*n m"]
    log_std: Float[Array, "*n m"]

    def draw(self, key: RandomKey) -> tuple[Array, Array]:
        """Actions, and their log densities."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        before = self.mean + jnp.exp(self.log_std) * noise
        return jnp.tanh(before), self._log(before, noise)

    def log_density(self, action: Float[Array, "*n m"]) -> Float[Array, "*n"]:
        """That of given actions; those at the border of the box as if just inside."""
        before = jnp.arctanh(jnp.clip(action, -1 + 1e-4, 1 - 1e-4))
        return self._log(before, (before - self.mean) / jnp.exp(self.log_std))

    def _log(self, before, noise):
        normal = -(noise**2) / 2 - self.log_std - jnp.log(2 * jnp.pi) / 2
        stretch = 2 * (jnp.log(2.0) - before - jax.nn.softplus(-2 * before))  # log(1 − tanh²)
        return jnp.sum(normal - stretch, axis=-1)


class SoftActor(eqx.Module):
    """One lower step, `Problem(lower_step=...)`; y are the weights of an actor and two critics.

    Attributes:
        env: the environment; its `actions` are a `Box`.
        reward: `(x, observations / scale, actions, absorbed) -> rewards`.
        discount: below 1.
        temperature: weight of the entropy, in units of the reward.
        trace: λ of the returns: 0 looks one step ahead, 1 to the end of what was played.
        follow: share by which the target critics move to the critics after each fit.
        update: moves actor and critics; its schedule counts lower steps.
        copies, length: moves played in one step are `copies` times `length`.
        rounds: moves of how many steps are kept.
        fits, batch: how often actor and critics are fitted in a step, each to how many moves: those
            of `batch / length` copies.
        key: decides where the copies start.
    """

    env: Environment
    reward: Callable
    discount: Scalar = eqx.field(converter=as_float, default=0.97)
    temperature: Scalar = eqx.field(converter=as_float, default=0.1)
    trace: Scalar = eqx.field(converter=as_float, default=0.9)
    follow: Scalar = eqx.field(converter=as_float, default=0.03)
    update: AbstractUpdate = eqx.field(default_factory=lambda: FromOptax(optax.adam, 1e-3))
    copies: int = eqx.field(static=True, default=64)
    length: int = eqx.field(static=True, default=16)
    rounds: int = eqx.field(static=True, default=60)
    fits: int = eqx.field(static=True, default=64)
    batch: int = eqx.field(static=True, default=256)
    key: RandomKey = eqx.field(default_factory=lambda: jax.random.key(0))

    def __check_init__(self):
        if not isinstance(self.env.actions, Box):
            raise ValueError(f"{self.env.actions} actions are no Box: take SoftQ.")
        if self.batch % self.length or self.batch == 0:
            raise ValueError(
                f"batch = {self.batch} is no multiple of length = {self.length}: whole pieces of "
                "moves are drawn."
            )

    def init(self, x, y) -> Memory:
        places = start(self.env, self.key, self.copies)
        n, d, m = (self.rounds, self.length, self.copies), len(self.env.scale), self._size()
        dtype = self.env.scale.dtype
        seen, action = jnp.zeros((*n, d), dtype), jnp.zeros((*n, m), dtype)
        log, told = jnp.zeros(n, dtype), jnp.zeros(n, bool)
        moves = trees.copy(Moves(seen, action, seen, log, told, told))
        target = trees.copy(y["critics"])
        return Memory(places, moves, target, self.update.init(y), jnp.zeros((), jnp.int32))

    def __call__(self, x, y, memory: Memory, key: RandomKey):
        play, fit = jax.random.split(key)
        places, steps = rollout(self.env, self.act(y), play, memory.places, self.length)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=memory.k % self.rounds, axis=0)
        moves = jax.tree.map(put, memory.moves, self.moves(y, steps))
        filled = jnp.minimum(memory.k + 1, self.rounds)
        n = self.batch // self.length

        def one(carry, key):
            y, target, update = carry
            keys = jax.random.split(key, 3)
            some = jax.random.randint(keys[0], (n,), 0, filled)
            copy = jax.random.randint(keys[1], (n,), 0, self.copies)
            part = jax.tree.map(lambda a: jnp.swapaxes(a[some, :, copy], 0, 1), moves)
            slope = jax.grad(self.misfit)(y, x, target, part, keys[2])
            y, update = self.update.step(slope, update, y, memory.k)
            return (y, trees.lerp(target, y["critics"], self.follow), update), None

        (y, target, update), _ = jax.lax.scan(
            one, (y, memory.target, memory.update), jax.random.split(fit, self.fits)
        )
        return y, Memory(places, moves, target, update, memory.k + 1)

    def start(self, key: RandomKey, width: int = 64) -> dict[str, Any]:
        d, m = len(self.env.scale), self._size()
        first, *rest = jax.random.split(key, 3)
        return {
            "actor": networks.init(first, (d, width, width, 2 * m)),
            "critics": [networks.init(k, (d + m, width, width, 1)) for k in rest],
        }

    def misfit(self, y, x, target, moves: Moves, key: RandomKey) -> Scalar:
        """The critics' squared misfit, and what the actor's moves are short of; a sum of two.

        Neither has a slope in the weights of the other.
        """
        first, second = jax.random.split(key)
        held, target = jax.lax.stop_gradient((y, target))
        wanted = self.targets(x, held, target, moves, first)
        short = [self.q(c, moves.before, moves.action) - wanted for c in y["critics"]]
        action, log = self.policy(y, moves.before).draw(second)
        worth = jnp.minimum(*(self.q(c, moves.before, action) for c in held["critics"]))
        of_critics = sum(jnp.mean(e**2) for e in short) / 2 * (1 - self.discount)
        return of_critics + jnp.mean(self.temperature * log - worth)

    def loss(self, x, y, key: RandomKey) -> Scalar:
        """`misfit` on moves of its own, where the critics are their own targets."""
        first, second, third = jax.random.split(key, 3)
        places = start(self.env, first, self.copies)
        _, steps = rollout(self.env, self.act(y), second, places, self.length)
        return self.misfit(y, x, y["critics"], self.moves(y, steps), third)

    def moves(self, y, steps: Steps) -> Moves:
        """What is kept of steps that the policy of y has made."""
        log = self.log_probability(y, steps.before, steps.action)
        return Moves(steps.before, steps.action, steps.after, log, steps.ended, steps.reset)

    def targets(self, x, y, target, moves: Moves, key: RandomKey) -> Float[Array, "t n"]:
        """`G_t = r_t + γ ((1 − λ) V_{t+1} + λ (G_{t+1} − τ log π_{t+1}))`, as `SoftQ.targets`.

        `V = min Q(s, a) − τ log π(a | s)`, of the two target critics.
        """
        action, log = self.policy(y, moves.after).draw(key)
        ahead = jnp.minimum(*(self.q(c, moves.after, action) for c in target))
        ahead = jnp.where(moves.ended, self.absorbed(x), ahead - self.temperature * log)
        gain = self.reward(x, self.scaled(moves.before), moves.action, jnp.zeros_like(ahead))

        def back(after, row):
            gain, ahead, spent, reset = row
            blend = (1 - self.trace) * ahead + self.trace * after
            total = gain + self.discount * jnp.where(reset, ahead, blend)
            return total - spent, total

        rows = (gain, ahead, self.temperature * moves.log, moves.reset.at[-1].set(True))
        return jax.lax.scan(back, jnp.zeros_like(gain[0]), rows, reverse=True)[1]

    def absorbed(self, x) -> Scalar:
        """The value of what has ended."""
        seen, action = jnp.zeros_like(self.env.scale), actions.nothing(self.env.actions)
        here = self.reward(x, seen, action, jnp.ones((), seen.dtype))
        return (here + self.temperature * actions.entropy(self.env.actions)) / (1 - self.discount)

    def q(self, critic, seen: Float[Array, "*n d"], action: Float[Array, "*n m"]) -> Array:
        """In units of the reward."""
        inputs = jnp.concatenate([self.scaled(seen), action], axis=-1)
        return networks.apply(critic, inputs)[..., 0] / jnp.sqrt(1 - self.discount)

    def policy(self, y, seen: Float[Array, "*n d"]) -> Gaussian:
        mean, spread = jnp.split(networks.apply(y["actor"], self.scaled(seen)), 2, axis=-1)
        half = (WIDEST - SHARPEST) / 2
        return Gaussian(mean, SHARPEST + half * (1 + jnp.tanh(spread)))

    def act(self, y):
        return lambda key, seen: self.policy(y, seen).draw(key)[0]

    def log_probability(self, y, seen: Array, action: Array) -> Array:
        return self.policy(y, seen).log_density(action)

    def scaled(self, seen: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """What networks see of observations."""
        return seen / networks.over(self.env.scale, seen)

    def _size(self) -> int:
        assert isinstance(self.env.actions, Box)
        return self.env.actions.size
