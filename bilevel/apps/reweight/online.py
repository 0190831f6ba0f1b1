"""DoGE: weights that grow with the alignment of a source's gradient and the target's."""

from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import trees
from bilevel.apps.reweight.two_levels import Sources, source_losses, stratified
from bilevel.losses import RowLoss, Rows, scores, zero_model


class Doge(NamedTuple):
    """Weights after the last step, and their mean over all steps, which DoGE reports."""

    last: Float[Array, " sources"]
    mean: Float[Array, " sources"]
    y: PyTree


def doge(
    sources: Sources,
    validation: Rows,
    loss: RowLoss,
    *,
    outputs: int = 1,
    step_size: ScalarLike = 1e-2,
    mu: ScalarLike = 0.01,
    batch_size: int = 64,
    steps: int = 3000,
    seed: int = 0,
) -> Doge:
    """A baseline without a second level: `p ← softmax(log p + score/mu)` as the model trains.

    The score of source k is `step_size ⟨G_k, G⟩ / mean_j ‖G_j‖`, G the gradient on the validation
    rows, clipped to `[0, 5 step_size]`; the model moves along `Σ_k p_k G_k`.
    """
    draw = stratified(sources, max(1, batch_size // sources.number))
    target = Rows(*map(jnp.asarray, validation))
    step_size, mu = jnp.asarray(step_size, float), jnp.asarray(mu, float)

    def on_target(y):
        return loss(scores(y, target.features), target.target).mean()

    def step(carry, key):
        log_p, y = carry
        each = jax.jacrev(lambda y: source_losses(loss, y, draw(key)))(y)
        G = jax.vmap(lambda g: jax.flatten_util.ravel_pytree(g)[0])(each)
        g, unravel = jax.flatten_util.ravel_pytree(jax.grad(on_target)(y))
        gain = step_size * G @ g / (jnp.linalg.norm(G, axis=1).mean() + 1e-6)
        log_p = jax.nn.log_softmax(log_p + jnp.clip(gain, 0, 5 * step_size) / mu)
        y = trees.axpy(-step_size, unravel(jnp.exp(log_p) @ G), y)
        return (log_p, y), jnp.exp(log_p)

    y0 = zero_model(sources.rows.features.shape[1], outputs)
    start = jnp.full(sources.number, -np.log(sources.number)), y0
    keys = jax.random.split(jax.random.key(seed), steps)
    (log_p, y), path = jax.jit(lambda: jax.lax.scan(step, start, keys))()
    return Doge(jnp.exp(log_p), path.mean(0), y)
