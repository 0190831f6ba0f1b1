"""DERL: a generator of reward programs, trained by how well the policies of its programs do.

Reference: group-relative policy gradients as in Shao et al. "DeepSeekMath". arXiv:2402.03300.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar, ScalarLike

from bilevel.problem import Problem


def programs(levels: int, primitives: int) -> Int[Array, "programs primitives"]:
    """All of them: a level for each primitive."""
    places = jnp.indices((levels,) * primitives)
    return places.reshape(primitives, -1).T


def problem(
    score: Callable[[Int[Array, " primitives"]], Scalar], group: int = 8, towards: ScalarLike = 0.0
) -> Problem:
    """Maximise the mean score of programs over x, the logits `(primitives, levels)` of a generator.

    `score(program)` trains a policy with the program's reward and tells how well it does: the
    lower problem, which is not differentiated. y holds nothing. Each step draws a group of
    programs and takes their advantages `(score − mean) / deviation`. Batches are random keys.

    Args:
        towards: weight of the KL divergence from the uniform generator.
    """

    def draw(x, key):
        chosen = jax.random.categorical(key, x, shape=(group, x.shape[0]))
        return chosen, jax.vmap(score)(chosen)

    def upper(x, y, batch):
        return -draw(x, batch)[1].mean()

    def hypergradient(x, y, batch):
        chosen, scores = draw(x, batch.upper)
        spread = scores.std()
        advantages = (scores - scores.mean()) / jnp.where(spread > 0, spread, 1)

        def surrogate(x):
            logs = jax.nn.log_softmax(x)
            each = jnp.take_along_axis(logs[None], chosen[..., None], axis=2).sum(axis=(1, 2))
            kl = jnp.sum(jnp.exp(logs) * logs)
            return jnp.asarray(towards, x.dtype) * kl - jnp.mean(advantages * each)

        return jax.grad(surrogate)(x)

    return Problem(
        upper,
        lambda x, y, batch: jnp.sum(y**2) / 2,
        lower_step=lambda x, y, batch: y,
        hypergradient=hypergradient,
    )


def likeliest(x: Float[Array, "primitives levels"]) -> Int[Array, " primitives"]:
    return jnp.argmax(x, axis=1)
