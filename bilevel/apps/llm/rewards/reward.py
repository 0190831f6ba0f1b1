"""Reward models: a scalar per response, its normalisation, and a score for unfinished responses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Scalar, ScalarLike

from bilevel import trees
from bilevel.apps.llm.policies.policy import Preferences, Responses, stopped
from bilevel.apps.llm.rewards import losses
from bilevel.fields import finite
from bilevel.typing import RandomKey

Reward = Callable[[PyTree, Responses], Float[Array, " n"]]  # reward(x, responses)
Hidden = Callable[[PyTree, Responses], Float[Array, "n time d"]]


def last(values: Float[Array, "n time"], mask: Bool[Array, "n time"]) -> Float[Array, " n"]:
    """The value at the last token of each response; zero for an empty one."""
    place = jnp.arange(mask.shape[1])[None]
    end = jnp.where(mask, place, -1).max(axis=1, keepdims=True)
    return jnp.where(place == end, values, 0).sum(axis=1)


class Head(eqx.Module):
    """A linear head on the hidden states of a trunk, read at the last token of a response.

    Parameters are `{"trunk": ..., "weight": (d, heads), "bias": (heads,)}`, without `trunk` if it
    is frozen.

    Attributes:
        hidden: `hidden(trunk, responses) -> (n, time, d)`, the states after every token of the
            response.
        trunk: frozen parameters of the trunk, such as those of the policy; learned if `None`.
        combine: reduces several heads to one number, along the last axis.
    """

    hidden: Hidden
    trunk: PyTree = None
    combine: Callable = eqx.field(static=True, default=jnp.mean)

    def init(self, key: RandomKey, d: int, *, trunk: PyTree = None, heads: int = 1) -> PyTree:
        """Initial parameters: weights N(0, 1/(d+1)), zero biases, and `trunk` if it is learned.

        Raises:
            ValueError: there are two trunks, or none.
        """
        if (trunk is None) == (self.trunk is None):
            raise ValueError("give the start of a trunk to be learned, or Head(trunk=...), frozen.")
        kind = None if trunk is None else trees.widest(trunk)
        weight = jax.random.normal(key, (d, heads), kind) / (d + 1) ** 0.5
        head = {"weight": weight, "bias": jnp.zeros(heads, weight.dtype)}
        return head if trunk is None else {"trunk": trunk, **head}

    def tokens(self, x: PyTree, responses: Responses) -> Float[Array, "n time"]:
        """A reward after every token, zero outside the mask."""
        trunk = x["trunk"] if self.trunk is None else stopped(self.trunk)
        states = self.hidden(trunk, responses)
        states = states.astype(trees.widest(states))
        weight, bias = (x[name].astype(states.dtype) for name in ("weight", "bias"))
        scores = states @ weight + bias[None, None]
        return jnp.where(responses.mask, self.combine(scores, axis=-1), 0)

    def __call__(self, x: PyTree, responses: Responses) -> Float[Array, " n"]:
        return last(self.tokens(x, responses), responses.mask)


def judged(
    reward: Reward,
    x: PyTree,
    pairs: Preferences,
    *,
    per_token: bool = False,
    smoothing: ScalarLike = 0.0,
) -> Scalar:
    """The Bradley-Terry loss of a reward, for whole responses or at every token.

    Raises:
        TypeError: `per_token` with a reward that has no method `tokens`.
    """
    if not per_token:
        return losses.preference(reward(x, pairs.chosen), reward(x, pairs.rejected), smoothing)
    after = getattr(reward, "tokens", None)
    if after is None:
        raise TypeError(
            f"{type(reward).__name__} is a reward of whole responses; per_token needs a method "
            "tokens(x, responses), a reward after every token, as reward.Head has."
        )
    return losses.token_preference(
        after(x, pairs.chosen), after(x, pairs.rejected), pairs, smoothing
    )


# --- normalisation --------------------------------------------------------------------------


class Moments(NamedTuple):
    mean: Scalar
    deviation: Scalar


def moments(reward: Reward, x: PyTree, responses: Responses) -> Moments:
    """Mean and standard deviation of a reward over responses, with gradients stopped."""
    values = jax.lax.stop_gradient(reward(x, responses))
    return Moments(values.mean(), jnp.maximum(values.std(), jnp.finfo(values.dtype).eps))


class Normalised(eqx.Module):
    """A reward normalised to mean 0 and standard deviation 1 over fixed responses.

    For the policy step only: dividing a reward by its deviation multiplies β by it. If the
    parameters are fixed, `Shifted` is cheaper.
    """

    reward: Reward
    responses: Responses  # of the reference

    def __call__(self, x: PyTree, responses: Responses) -> Float[Array, " n"]:
        return _standard(self.reward(x, responses), moments(self.reward, x, self.responses))


class Shifted(eqx.Module):
    """A reward minus a fixed mean, divided by a fixed standard deviation."""

    reward: Reward
    moments: Moments

    def __call__(self, x: PyTree, responses: Responses) -> Float[Array, " n"]:
        return _standard(self.reward(x, responses), self.moments)


def _standard(values, at: Moments):
    return (values - at.mean.astype(values.dtype)) / at.deviation.astype(values.dtype)


class Ended(eqx.Module):
    """A reward for responses that end with the stop token, and a fixed score for all others."""

    reward: Reward
    stop: Any  # the stop token, or an array of several
    score: ScalarLike = finite(-1.0)

    def __call__(self, x: PyTree, responses: Responses) -> Float[Array, " n"]:
        values = self.reward(x, responses)
        stops = jnp.atleast_1d(jnp.asarray(self.stop, responses.tokens.dtype))
        stopping = (responses.tokens[..., None] == stops[None, None]).any(axis=-1)
        done = last(stopping.astype(values.dtype), responses.mask) > 0
        return jnp.where(done, values, jnp.asarray(self.score, values.dtype))
