"""Single-level training, and access to the feedback of a task for the baselines."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import PyTree

from bilevel.apps.llm.methods.align import Options
from bilevel.apps.llm.methods.task import Feedback, Task, feedback
from bilevel.apps.llm.policies.policy import Preferences, Responses, referred
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.driver.log import as_metric
from bilevel.methods import TTSA
from bilevel.problem import Problem
from bilevel.selection import solve
from bilevel.typing import Scalar
from bilevel.updates import AbstractUpdate, FromOptax


def adam():
    return FromOptax(optax.adam, 1e-3)


class SingleLevel(eqx.Module):
    """`loss(x, batch)` as an upper loss; y is an unused scalar."""

    loss: Callable

    def __call__(self, x, y, batch):
        return self.loss(x, batch)


class _Slope(eqx.Module):
    loss: Callable

    def __call__(self, x, y, batch):
        return jax.grad(self.loss)(x, batch.upper)


def _idle(x, y, batch):
    return y


def _square(x, y, batch):
    return y * y / 2


def single(loss: Callable[[PyTree, Any], Scalar], direction: Callable | None = None) -> Problem:
    """`loss(x, batch)` as a bilevel problem: TTSA on it moves x along the gradient.

    Args:
        direction: `fn(x, y, batch)` in place of the gradient.
    """
    slope = direction or _Slope(loss)
    return Problem(SingleLevel(loss), _square, hypergradient=slope, lower_step=_idle)


def minimise(
    loss: Callable[[PyTree, Feedback], Scalar],
    start: PyTree,
    update: AbstractUpdate,
    task: Task,
    options: Options,
    metric: Callable[[Callable], Callable],
    pairs: tuple[Responses, Responses] | None = None,
) -> Result:
    """Minimise `loss(x, feedback)` over the feedback of a task.

    Args:
        metric: turns a function of the reward's and the policy's parameters into one of (x, y).
        pairs: demonstrations and the policy's own responses to their prompts.
    """
    return solve(
        single(loss),
        TTSA(update),
        start,
        jnp.zeros(()),
        data=Data(feedback(task, options.batch_size, pairs)),
        metrics={name: metric(fn) for name, fn in options.metrics.items()},
        **options.settings(start),
    )


def of_policy(fn):
    """A metric of the policy. Arrays bound by a `Partial` stay arguments of the program."""
    return Partial(_at_policy, as_metric(fn))


def _at_policy(fn, x, y):
    return fn(None, x)


def at_reward(fn, policy, x, y):
    return fn(x, policy)


def kept_only(task: Task, *, demonstrations=None, preferences=None) -> Task:
    """The task with only the given feedback."""
    return eqx.tree_at(
        lambda t: (t.demonstrations, t.preferences),
        task,
        (demonstrations, preferences),
        is_leaf=lambda leaf: leaf is None,
    )


def demonstrations_of(task: Task) -> Responses:
    if task.demonstrations is None:
        raise ValueError("the task has no demonstrations: give Task(..., demonstrations=...).")
    return task.demonstrations


def preferences_of(task: Task) -> Preferences:
    if task.preferences is None:
        raise ValueError("the task has no preferences: give Task(..., preferences=...).")
    return task.preferences


def pairs_referred(
    task: Task, pairs: Preferences, rows: int | None, free: bool = False
) -> Preferences:
    if free:
        return Preferences(*(r._replace(reference=jnp.zeros(r.mask.shape[:1])) for r in pairs))
    return Preferences(*(referred(task.policy, task.reference, r, rows=rows) for r in pairs))
