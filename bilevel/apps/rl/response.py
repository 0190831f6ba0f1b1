"""The hypergradient of any loss of a soft optimal policy, exact and without a Hessian."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from bilevel.apps.rl.mdp import (
    MDP,
    Table,
    backup,
    chain,
    policy_iteration,
    soft_policy,
    soft_values,
)
from bilevel.problem import Problem

Loss = Callable[[PyTree, Table], Scalar]


def problem(mdp: MDP, reward: Callable[[PyTree], Table], loss: Loss) -> Problem:
    """Minimise `loss(x, π)` where π is soft optimal for `reward(x)`.

    y is the table Q; a lower step is one of soft policy iteration. The hypergradient is `adjoint`
    at the present y, exact once y is.
    """

    def upper(x, y, batch):
        return loss(x, soft_policy(mdp, y))

    def lower(x, y, batch):
        return jnp.sum((y - backup(mdp, reward(x), soft_values(mdp, y))) ** 2) / 2

    def step(x, y, batch):
        return policy_iteration(mdp, reward(x), y)

    def hypergradient(x, y, batch):
        return adjoint(mdp, reward, loss, x, soft_policy(mdp, y))

    return Problem(upper, lower, lower_step=step, hypergradient=hypergradient)


def adjoint(mdp: MDP, reward: Callable[[PyTree], Table], loss: Loss, x: PyTree, policy: Table):
    """`d loss(x, π_x) / dx`, by one linear system of the size of the states.

    With `G = π ∂f/∂π / τ` and `c(t) = γ Σ G(s, a) P(s, a, t) − Σ_a G(t, a)`, solve
    `(I − γ P_π)ᵀ u = c`; then `G + u π` is the derivative by the reward.

    Args:
        policy: soft optimal for `reward(x)`; an error in it is an error of the same order here.
    """
    by_x, by_policy = jax.grad(loss, argnums=(0, 1))(x, policy)
    G = policy * by_policy / mdp.temperature
    c = mdp.discount * jnp.einsum("sa,sat->t", G, mdp.kernel) - G.sum(axis=1)
    u = jnp.linalg.solve(chain(mdp, policy).T, c)
    _, pull = jax.vjp(reward, x)
    return jax.tree.map(jnp.add, by_x, pull(G + u[:, None] * policy)[0])


def direct(mdp: MDP, reward: Callable[[PyTree], Table], loss: Loss, x, policy: Table):
    """The same through `dV/dx = (I − γ P_π)⁻¹ E_π[dr/dx]`, for x that is one array.

    As many right-hand sides as x has numbers: for few of them, and as a check.
    """
    by_x, by_policy = jax.grad(loss, argnums=(0, 1))(x, policy)
    r_x = jax.jacobian(reward)(x).reshape(*mdp.shape, -1)
    V_x = jnp.linalg.solve(chain(mdp, policy), jnp.einsum("sa,sad->sd", policy, r_x))
    Q_x = r_x + mdp.discount * jnp.einsum("sat,td->sad", mdp.kernel, V_x)
    logs = (Q_x - V_x[:, None]) / mdp.temperature
    return by_x + jnp.einsum("sa,sad->d", policy * by_policy, logs).reshape(jnp.shape(x))
