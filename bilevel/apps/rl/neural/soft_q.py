"""The lower level: a soft policy that follows a reward, by one network Q and nothing stored.

A step plays some moves with the policy `exp((Q − V) / τ)`, computes what they earned under the
present reward, and fits Q to that. This is soft policy iteration with samples: the fit evaluates
the policy, and the new Q improves it.

Reference: Gallici, Fellows, Ellis, Pou, Masmitja, Foerster, Martin. "Simplifying deep temporal
difference learning". ICLR 2025, arXiv:2407.04811. Differs from it: values have entropy, and no
layer is normalised.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Scalar, ScalarLike

from bilevel.apps.rl.mdp import as_float
from bilevel.apps.rl.neural import actions, networks
from bilevel.apps.rl.neural.environments import Environment
from bilevel.apps.rl.neural.rollouts import Places, Steps, rollout, start
from bilevel.schedules import Cosine
from bilevel.typing import RandomKey
from bilevel.updates import AbstractUpdate, FromOptax


class Memory(NamedTuple):
    places: Places
    update: Any
    k: Array


def settling(steps: int, step_size: ScalarLike = 2e-3) -> AbstractUpdate:
    """Adam on Q whose step size falls to zero along half a cosine over `steps` lower steps.

    With a constant one the policy of the last step is as good as luck would have it.
    """
    return FromOptax(optax.adam, Cosine(step_size, steps))


class SoftQ(eqx.Module):
    """One lower step, `Problem(lower_step=...)`; y are the weights of Q.

    Attributes:
        env: the environment.
        reward: `(x, observations / scale, actions, absorbed) -> rewards`.
        discount: below 1.
        temperature: weight of the entropy, in units of the reward.
        trace: λ of the returns: 0 looks one step ahead, 1 to the end of what was played.
        update: moves Q; its schedule counts lower steps. `settling(steps)` for a run of its own.
        copies, length: moves played in one step are `copies` times `length`.
        passes, parts: how often Q is fitted to them, and in how many parts.
        key: decides where the copies start.
    """

    env: Environment
    reward: Callable
    discount: Scalar = eqx.field(converter=as_float, default=0.97)
    temperature: Scalar = eqx.field(converter=as_float, default=0.5)
    trace: Scalar = eqx.field(converter=as_float, default=0.9)
    update: AbstractUpdate = eqx.field(default_factory=lambda: FromOptax(optax.adam, 2e-3))
    copies: int = eqx.field(static=True, default=64)
    length: int = eqx.field(static=True, default=16)
    passes: int = eqx.field(static=True, default=4)
    parts: int = eqx.field(static=True, default=8)
    key: RandomKey = eqx.field(default_factory=lambda: jax.random.key(0))

    def init(self, x, y) -> Memory:
        places = start(self.env, self.key, self.copies)
        return Memory(places, self.update.init(y), jnp.zeros((), jnp.int32))

    def __call__(self, x, y, memory: Memory, key: RandomKey):
        play, shuffle = jax.random.split(key)
        places, steps = rollout(self.env, self.act(y), play, memory.places, self.length)
        targets = self.targets(x, y, steps)
        rows = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (steps.before, steps.action))
        n = self.copies * self.length
        order = jnp.concatenate(
            [jax.random.permutation(k, n) for k in jax.random.split(shuffle, self.passes)]
        ).reshape(self.passes * self.parts, -1)

        def fit(carry, some):
            y, at = carry
            seen, action = jax.tree.map(lambda a: a[some], rows)
            slope = jax.grad(self.misfit)(y, seen, action, targets.ravel()[some])
            return self.update.step(slope, at, y, memory.k), None

        (y, at), _ = jax.lax.scan(fit, (y, memory.update), order)
        return y, Memory(places, at, memory.k + 1)

    def q(self, y, seen: Float[Array, "*n d"]) -> Float[Array, "*n actions"]:
        """`Q = V + A − mean A`, in units of the reward times `1 / (1 − γ)`."""
        value = networks.apply(y["value"], self.scaled(seen))
        gains = networks.apply(y["gains"], self.scaled(seen))
        return value / (1 - self.discount) + gains - gains.mean(axis=-1, keepdims=True)

    def scaled(self, seen: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """What networks see of observations."""
        return seen / networks.over(self.env.scale, seen)

    def start(self, key: RandomKey, width: int = 64) -> dict[str, networks.Params]:
        d, m = len(self.env.scale), actions.inputs(self.env.actions)
        keys = jax.random.split(key)
        return {
            "value": networks.init(keys[0], (d, width, width, 1)),
            "gains": networks.init(keys[1], (d, width, width, m)),
        }

    def values(self, y, seen: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        return self.temperature * jax.nn.logsumexp(self.q(y, seen) / self.temperature, axis=-1)

    def act(self, y):
        return lambda key, seen: jax.random.categorical(key, self.q(y, seen) / self.temperature)

    def log_probability(self, y, seen, action: Int[Array, "*n"]) -> Float[Array, "*n"]:
        logs = jax.nn.log_softmax(self.q(y, seen) / self.temperature, axis=-1)
        return jnp.take_along_axis(logs, action[..., None], axis=-1)[..., 0]

    def loss(self, x, y, key: RandomKey) -> Scalar:
        """Half the squared distance of Q from what moves of its own earned."""
        first, second = jax.random.split(key)
        places = start(self.env, first, self.copies)
        _, steps = rollout(self.env, self.act(y), second, places, self.length)
        seen = steps.before.reshape(-1, steps.before.shape[-1])
        targets = jax.lax.stop_gradient(self.targets(x, y, steps)).ravel()
        return self.misfit(y, seen, steps.action.ravel(), targets)

    def misfit(self, y, seen, action: Int[Array, " n"], target: Float[Array, " n"]) -> Scalar:
        q = jnp.take_along_axis(self.q(y, seen), action[:, None], axis=1)[:, 0]
        return jnp.mean((q - target) ** 2) / 2

    def targets(self, x, y, steps: Steps) -> Float[Array, "t n"]:
        """Soft λ-returns `G_t = r_t + γ ((1 − λ) V_{t+1} + λ (G_{t+1} − τ log π_{t+1}))`.

        What has ended stays where it is, with a reward of its own and as much entropy as there is.
        """
        spent = self.temperature * self.log_probability(y, steps.before, steps.action)
        ahead = jnp.where(steps.ended, self.absorbed(x), self.values(y, steps.after))
        gain = self.reward(x, self.scaled(steps.before), steps.action, jnp.zeros_like(spent))

        def back(after, row):
            gain, ahead, spent, reset = row
            blend = (1 - self.trace) * ahead + self.trace * after
            total = gain + self.discount * jnp.where(reset, ahead, blend)
            return total - spent, total

        reset = steps.reset.at[-1].set(True)
        rows = (gain, ahead, spent, reset)
        return jax.lax.scan(back, jnp.zeros_like(gain[0]), rows, reverse=True)[1]

    def absorbed(self, x) -> Scalar:
        """The value of what has ended."""
        seen, action = jnp.zeros_like(self.env.scale), actions.nothing(self.env.actions)
        here = self.reward(x, seen, action, jnp.ones((), seen.dtype))
        return (here + self.temperature * actions.entropy(self.env.actions)) / (1 - self.discount)
