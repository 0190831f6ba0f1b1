"""A few lower steps from the current iterate: the inner loop of the sampled methods."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Int

from bilevel import oracles, trees
from bilevel.problem import Problem, Samples
from bilevel.schedules import Count
from bilevel.typing import Lower, Scalar
from bilevel.updates import AbstractUpdate


class GradientStep(eqx.Module):
    """`y ← P_Y(y − b_k ∇_y g)` with any update."""

    update: AbstractUpdate

    def init(self, problem: Problem, x, y) -> Any:
        return self.update.init(y)

    def step(self, problem: Problem, x, y, memory, batch, k: Count):
        """The moved y, the new memory, and the norm of the gradient it used."""
        g_y = oracles.lower_grad(problem, x, y, batch)
        y, memory = self.update.step(g_y, memory, y, k)
        return problem.lower_set.project(y, x), memory, trees.norm(g_y)


class DeclaredStep(eqx.Module):
    """The problem's own `lower_step`, with or without memory."""

    fn: Any

    def init(self, problem: Problem, x, y) -> Any:
        return self.fn.init(x, y) if self._remembers() else None

    def step(self, problem: Problem, x, y, memory, batch, k: Count):
        if self._remembers():
            moved, memory = self.fn(x, y, memory, batch)
        else:
            moved = self.fn(x, y, batch)
        moved = trees.cast_like(moved, y)
        return moved, memory, trees.norm(trees.sub(moved, y))

    def _remembers(self) -> bool:
        return hasattr(self.fn, "init")


def lower_step(problem: Problem, update: AbstractUpdate) -> GradientStep | DeclaredStep:
    """The step a problem declares, else a gradient step with `update`."""
    if problem.lower_step is None:
        return GradientStep(update)
    fn = problem.lower_step
    if isinstance(fn, Partial) and not fn.args and not fn.keywords:
        return DeclaredStep(fn.func)
    return DeclaredStep(fn)


class Descent(NamedTuple):
    """Where a descent ended."""

    y: Lower
    memory: Any  # what the update remembers, for the next descent
    grad_norm: Scalar  # ‖∇_y g‖ where it was last taken; of a declared step, the length


def descend(
    problem: Problem,
    x,
    y: Lower,
    samples: Samples,
    *,
    update,
    memory,
    steps: int | Int[Array, ""],
    k: Count | None,
) -> Descent:
    """`steps` ≥ 1 lower steps, the i-th on `samples[i]`.

    Each is the problem's own `lower_step` where it declares one, else a step of `update` along
    `∇_y g`.

    Args:
        memory: what the steps remember, from `lower_step(problem, update).init(problem, x, y)`.
        steps: a traced number makes a loop that reverse mode cannot differentiate.
        k: what schedules see, the outer step number; `None` shows them the number i.

    Returns:
        `Descent(y, memory, grad_norm)`.
    """
    stepper = lower_step(problem, update)

    def step(i, y, memory):
        return stepper.step(problem, x, y, memory, samples[i], i if k is None else k)

    def body(carry, i):
        *carry, grad_norm = step(i, *carry)
        return carry, grad_norm

    if not isinstance(steps, int):
        first = step(0, y, memory)
        return Descent(*jax.lax.fori_loop(1, steps, lambda i, at: step(i, *at[:2]), first))
    if steps == 1:
        return Descent(*step(0, y, memory))
    (y, memory), norms = jax.lax.scan(body, [y, memory], jnp.arange(steps))
    return Descent(y, memory, norms[-1])
