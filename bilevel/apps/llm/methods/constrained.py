"""Constrained RLHF: several rewards, of which none is to be pushed beyond a point.

    min over x   Σ_i μ_i (E r_i − θ_i),   μ = squash(x)
    above        π_x = argmax over π of  Σ_i μ_i E r_i − (m − Σ_i μ_i) β KL(π ‖ π_ref)

A reward that was learned tells good from bad up to its proxy point θ_i; beyond it is exploited. A
multiplier rises while its reward is below the point, and falls above. Moskovitz, Singh, Strouse,
Sandholm, Salakhutdinov, Dragan, McAleer. "Confronting reward model overoptimization with
constrained RLHF". ICLR 2024, arXiv:2310.04373.
Differs from the paper: any policy step can be taken, which sees the rewards mixed (`Mixed`);
`policy_steps.value_heads` is that of the paper.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bilevel.apps.llm.data.sources import Together
from bilevel.apps.llm.methods.reward_learning import Lower
from bilevel.apps.llm.methods.task import Task, rows_of
from bilevel.apps.llm.policies.policy import AbstractPolicy, repeated, stopped
from bilevel.apps.llm.policy_steps.policy_step import (
    AbstractPolicyStep,
    Goal,
    LowerStep,
    Prompts,
)
from bilevel.apps.llm.rewards.mixed import Mixed
from bilevel.data import Data, Sampler
from bilevel.problem import Batch, Problem
from bilevel.typing import RandomKey, Scalar

Points = Float[Array, " rewards"]


def problem(
    task: Task, rewards: Mixed, points: Points, step: AbstractPolicyStep, *, samples: int = 4
) -> Problem:
    """Multipliers' logits x `(rewards,)` above the parameters y of a policy.

    Solve it with `TTSA`, and batches of `data`. The upper loss is that of the policy as it is, and
    is 0 where every reward is at its point or has no multiplier.

    Args:
        points: θ, the expected value at which each reward is held.
        samples: responses to each prompt that the expected rewards are measured by; they are exact
            for an enumerated policy.

    Raises:
        ValueError: there are not as many points as rewards.
    """
    points = jnp.asarray(points)
    if points.shape != (len(rewards.rewards),):
        raise ValueError(
            f"points has the shape {points.shape}, and there are {len(rewards.rewards)} rewards; "
            "give a point for each."
        )
    goal = Goal(task.policy, rewards, task.reference, task.beta)
    upper = _Multipliers(task.policy, rewards, points, samples)
    return Problem(
        upper, Lower(goal), hypergradient=_Slope(upper), lower_step=LowerStep(goal, step)
    )


def data(task: Task, *, prompts: int | None = None) -> Data:
    """Prompts and randomness for both levels; all prompts if `None`."""

    def draws() -> Together:
        rows = rows_of("prompts", task.prompts_to_answer(), prompts)
        return Together(Prompts(rows, Sampler(_itself)))  # pyright: ignore

    return Data(draws(), draws())


def expected(
    policy: AbstractPolicy, rewards: Mixed, y: PyTree, batch: Prompts, samples: int
) -> Points:
    """Mean rewards of a policy: exact, over all prompts, or of responses drawn."""
    if not policy.enumerable:
        drawn = policy.sample(y, repeated(batch.prompts, samples), batch.key)
        return stopped(rewards.each(drawn).mean(axis=0))
    p = jnp.exp(policy.log_table(y))
    tables = [policy.reward_table(lambda x, r, i=i: rewards.rewards[i](r), None)
              for i in range(len(rewards.rewards))]  # fmt: skip
    return stopped(jnp.stack([(p * table).sum(axis=1).mean() for table in tables]))


class _Multipliers(eqx.Module):
    policy: AbstractPolicy
    rewards: Mixed
    points: Points
    samples: int = eqx.field(static=True)

    def __call__(self, x: Points, y: PyTree, batch: Prompts) -> Scalar:
        reached = expected(self.policy, self.rewards, y, batch, self.samples)
        excess = reached.astype(x.dtype) - self.points.astype(x.dtype)
        return self.rewards.multipliers(x) @ excess


class _Slope(eqx.Module):
    loss: _Multipliers

    def __call__(self, x: Points, y: PyTree, batch: Batch) -> Points:
        """The policy is held, as in descent on a dual function."""
        return jax.grad(self.loss)(x, y, batch.upper)


def _itself(key: RandomKey) -> RandomKey:
    return key


def search_points(
    score: Callable[[np.ndarray], float],
    start: np.ndarray,
    *,
    size: float,
    iterations: int = 10,
) -> tuple[np.ndarray, float]:
    """Proxy points that a trusted score is best at, by the simplex search of Nelder and Mead.

    Args:
        score: of a policy that was held at the points given; it may go on from where it last was.
        start: points to begin with.
        size: by how much each of them is changed at first.

    Returns:
        The best points, and their score.
    """
    from scipy.optimize import minimize

    simplex = start + size * np.eye(len(start) + 1, len(start), -1)
    options = {"maxiter": iterations, "initial_simplex": simplex}
    found = minimize(lambda points: -score(points), start, method="Nelder-Mead", options=options)
    return found.x, -float(found.fun)
