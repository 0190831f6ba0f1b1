"""The problem, and a run from a random choice."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from bilevel import methods, sets, trees
from bilevel.driver import Result
from bilevel.problem import Batch, Problem
from bilevel.selection import solve
from bilevel.updates import SGD

Losses = Callable[[PyTree], Float[Array, " n"]]


class Selected(NamedTuple):
    """The m samples with the largest weights, and the run that found them."""

    rows: Int[Array, " m"]
    weights: Float[Array, " n"]
    unlearned: PyTree  # the model after the last unlearning
    result: Result


class SignDescent(eqx.Module):
    """`y ← y − step_size/(1 + decay k) sign ∇_y g`, k counted from the start of each unlearning."""

    loss: Callable
    step_size: Array
    decay: Array

    def init(self, x, y):
        return jnp.zeros((), trees.widest(y))

    def __call__(self, x, y, k, batch):
        grad = jax.grad(self.loss, 1)(x, y, batch)
        length = (self.step_size / (1 + self.decay * k)).astype(k.dtype)
        return trees.map(lambda y, g: y - length.astype(y.dtype) * jnp.sign(g), y, grad), k + 1


def problem(
    losses: Losses,
    forgetting: Losses,
    m: int,
    *,
    rest: Callable[[PyTree], Array] | None = None,
    decay: ScalarLike = 0.0,
    step_size: ScalarLike = 1e-2,
) -> Problem:
    """Choose m samples whose loss stays small after unlearning.

    Args:
        losses: `params -> (n,)`, the loss of every sample that may be chosen; it may hold arrays
            as a `jax.tree_util.Partial`.
        forgetting: `params -> (n,)`, what unlearning descends on a sample that is forgotten: the
            loss of a random label, or minus the loss.
        rest: `params -> scalar`, a loss summed over samples that always stay.
        decay: of `‖w‖²` in the upper loss.
        step_size: of the first sign step; the k-th is `1/(1 + k/3)` times as long.
    """
    losses, forgetting = Partial(losses), Partial(forgetting)
    lower = Partial(_lower, losses, forgetting, None if rest is None else Partial(rest))
    decay = jnp.asarray(decay, float)
    return Problem(
        Partial(_upper, losses, decay),
        lower,
        upper_set=sets.CappedSimplex(m),
        hypergradient=Partial(_hypergradient, losses, decay),
        lower_step=SignDescent(lower, jnp.asarray(step_size, float), jnp.asarray(1 / 3)),
    )


def method(step_size: ScalarLike = 0.3, unlearning_steps: int = 30) -> methods.BA:
    """BA, which starts every unlearning at the original model."""
    return methods.BA(SGD(step_size), lower_steps=unlearning_steps, warm=False)


def select(
    losses: Losses,
    forgetting: Losses,
    params: PyTree,
    n: int,
    m: int,
    *,
    steps: int = 30,
    by: methods.BA | None = None,
    seed: int = 0,
    **options,
) -> Selected:
    """The m of n samples that are hardest to forget, from a random choice.

    Args:
        params: the original model, which every unlearning starts from.
        steps: unlearnings.
        by: `method(...)`.
        options: handed to `problem`.

    Raises:
        ValueError: m is not between 1 and n − 1.
    """
    if not 0 < m < n:
        raise ValueError(f"m is {m}; a number from 1 to {n - 1} is needed, with {n} samples.")
    first = jax.random.choice(jax.random.key(seed), n, (m,), replace=False)
    result = solve(
        problem(losses, forgetting, m, **options),
        method() if by is None else by,
        jnp.zeros(n).at[first].set(1.0),
        params,
        steps=steps,
        log_every=steps,
        progress=False,
        certify=False,
    )
    _, rows = jax.lax.top_k(result.x, m)
    return Selected(rows, result.x, result.y, result)


def _upper(losses, decay, x, y, batch):
    return jnp.sum(x * losses(y)) + decay.astype(x.dtype) * trees.dot(x, x)


def _lower(losses, forgetting, rest, x, y, batch):
    learned = jnp.sum((1 - x) * losses(y)) + jnp.sum(x * forgetting(y))
    return learned if rest is None else learned + rest(y)


def _hypergradient(losses, decay, x, y, batch: Batch):
    return losses(y) + 2 * decay.astype(x.dtype) * x
