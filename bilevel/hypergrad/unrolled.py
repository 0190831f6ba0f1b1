"""Hypergradients by differentiating through lower steps."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel import oracles, trees
from bilevel.hypergrad.result import HyperGrad
from bilevel.problem import Batch, Problem, RepeatedBatch, Samples
from bilevel.typing import Lower, Upper
from bilevel.updates import AbstractUpdate, as_update


def unrolled(
    problem: Problem,
    x: Upper,
    y0: Lower,
    batch: Batch = Batch(),
    *,
    update: AbstractUpdate | ScalarLike = 0.1,
    steps: int = 10,
    back: int | None = None,
    checkpoint: bool = False,
) -> HyperGrad:
    """Hypergradient of `f(x, y_T(x))`, where `y_T` is T lower steps from a constant `y0`.

    The steps are projected on the `lower_set`, if the problem has one. The last `back` steps (all
    of them if `None`) are differentiated in reverse mode. Truncation to K steps leaves an error of
    order `(1 − aμ)^K`. From `y0 = y*(x)`, K plain gradient steps give exactly
    `neumann(steps=K − 1)`.

    Args:
        x, y0: any pytrees of floating arrays.
        batch: `Batch(upper, lower)`; a `Samples` handle as `lower` gives step t its t-th sample.
        update: a step size, or any update, applied to `∇_y g`.
        steps: T.
        back: K, the number of last steps that are differentiated.
        checkpoint: keep only the lower iterates and recompute each step in the reverse pass. The
            memory is that of T copies of y and one step, instead of T steps.

    Returns:
        `HyperGrad(value, grad, y=y_T)`.

    Reference: Franceschi et al. "Forward and reverse gradient-based hyperparameter
    optimization". ICML 2017, arXiv:1703.01785; truncation: Shaban et al., AISTATS 2019,
    arXiv:1810.10667.
    """
    update = as_update(update)
    back = steps if back is None else min(back, steps)
    samples = batch.lower if isinstance(batch.lower, Samples) else RepeatedBatch(batch.lower)

    def descend(x, carry, first, last):
        def body(carry, t):
            y, memory = carry
            g_y = oracles.lower_grad(problem, x, y, samples[t])
            y, memory = update.step(g_y, memory, y, t)
            return (problem.lower_set.project(y, x), memory), trees.norm(g_y)

        body = jax.checkpoint(body, prevent_cse=False) if checkpoint else body
        return jax.lax.scan(body, carry, jnp.arange(first, last))

    y0 = trees.cast_like(y0, y0)  # Python numbers become arrays
    start = y0, update.init(y0)
    if back < steps:
        start, _ = descend(x, start, 0, steps - back)

    def objective(x):
        (y, _), norms = descend(x, start, steps - back, steps)
        with oracles.uncounted():
            return oracles.upper_value(problem, x, y, batch.upper), (y, norms)

    oracles.record(upper_grad=1, hvp=back, cross=back)  # the reverse pass: one of each a step
    (value, (y, norms)), grad = jax.value_and_grad(objective, has_aux=True)(x)
    last = norms[-1] if back else None
    return HyperGrad(value, grad, lower_grad_norm=last, y=y)
