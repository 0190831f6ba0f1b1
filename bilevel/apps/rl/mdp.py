"""Finite Markov decision processes with entropy: exact values, policies and visits."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar, ScalarLike

from bilevel.typing import RandomKey

Table = Float[Array, "states actions"]


def as_float(number: ScalarLike) -> Scalar:
    return jnp.asarray(number, float)


class MDP(eqx.Module):
    """States, actions and where they lead. Rewards come from elsewhere.

    Attributes:
        kernel: `kernel[s, a, t]`, the probability of t after a in s.
        start: the law of the first state.
        discount: below 1.
        temperature: weight of the entropy of the policy; above 0.
    """

    kernel: Float[Array, "states actions states"]
    start: Float[Array, " states"]
    discount: Scalar = eqx.field(converter=as_float)
    temperature: Scalar = eqx.field(converter=as_float)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of states and actions."""
        return self.kernel.shape[0], self.kernel.shape[1]


class Soft(NamedTuple):
    """The solution of an MDP with entropy."""

    values: Float[Array, " states"]  # V = τ log Σ_a exp(Q / τ)
    q: Table  # Q = r + γ P V
    policy: Table  # exp((Q − V) / τ)


def random_mdp(
    seed: int, states: int, actions: int, *, discount: float = 0.9, temperature: float = 1.0
) -> MDP:
    """Rows of the kernel from a Dirichlet(0.3) law, and a uniform start."""
    draw = np.random.default_rng(seed)
    kernel = draw.dirichlet(np.full(states, 0.3), size=(states, actions))
    start = np.full(states, 1 / states)
    return MDP(jnp.asarray(kernel), jnp.asarray(start), discount, temperature)


def soft_values(mdp: MDP, q: Table) -> Float[Array, " states"]:
    """`τ log Σ_a exp(Q / τ)`."""
    return mdp.temperature * jax.nn.logsumexp(q / mdp.temperature, axis=1)


def soft_policy(mdp: MDP, q: Table) -> Table:
    return jax.nn.softmax(q / mdp.temperature, axis=1)


def backup(mdp: MDP, reward: Table, values: Float[Array, " states"]) -> Table:
    """`r + γ P V`."""
    return reward + mdp.discount * mdp.kernel @ values


def chain(mdp: MDP, policy: Table) -> Float[Array, "states states"]:
    """`I − γ P_π`, where `P_π` moves states under a policy."""
    moves = jnp.einsum("sa,sat->st", policy, mdp.kernel)
    return jnp.eye(len(moves), dtype=moves.dtype) - mdp.discount * moves


def evaluate(mdp: MDP, reward: Table, policy: Table, *, entropy: bool = True) -> Array:
    """Values of a policy by a linear solve; with its entropy, or the plain discounted reward."""
    logs = jnp.log(jnp.where(policy > 0, policy, 1))
    gain = reward - mdp.temperature * logs if entropy else reward
    return jnp.linalg.solve(chain(mdp, policy), jnp.sum(policy * gain, axis=1))


def occupancy(mdp: MDP, policy: Table, start: Float[Array, " states"] | None = None) -> Table:
    """`Σ_t γ^t P(s_t = s, a_t = a)` under a policy, by a linear solve; `mdp.start` when absent."""
    start = mdp.start if start is None else start
    return jnp.linalg.solve(chain(mdp, policy).T, start)[:, None] * policy


def policy_iteration(mdp: MDP, reward: Table, q: Table) -> Table:
    """One step to the soft optimum: evaluate `softmax(Q / τ)` exactly. Newton on `V = T V`."""
    return backup(mdp, reward, evaluate(mdp, reward, soft_policy(mdp, q)))


def value_iteration(mdp: MDP, reward: Table, q: Table) -> Table:
    """One soft Bellman backup, a γ-contraction."""
    return backup(mdp, reward, soft_values(mdp, q))


def solve(mdp: MDP, reward: Table, *, most: int = 100) -> Soft:
    """The soft optimum to rounding, by policy iteration, which is quadratic near the end.

    Not differentiable; `hypergradient` has its derivatives.
    """

    def unfinished(carry):
        q, change, i = carry
        return (i < most) & (change > 16 * jnp.finfo(q.dtype).eps * (1 + jnp.max(jnp.abs(q))))

    def step(carry):
        q, _, i = carry
        new = policy_iteration(mdp, reward, q)
        return new, jnp.max(jnp.abs(new - q)), i + 1

    reward = jnp.asarray(reward)
    start = reward, jnp.asarray(jnp.inf, reward.dtype), 0
    q = jax.lax.while_loop(unfinished, step, start)[0]
    return Soft(soft_values(mdp, q), q, soft_policy(mdp, q))


class Rollouts(NamedTuple):
    """Trajectories of one length: the states have one column more, where the last action led."""

    states: Int[Array, "n t+1"]
    actions: Int[Array, "n t"]


def rollouts(mdp: MDP, policy: Table, key: RandomKey, n: int, length: int) -> Rollouts:
    """Trajectories of a policy, drawn by inverting distribution functions."""
    first, rest = jax.random.split(key)
    starts = draw(jnp.cumsum(mdp.start)[None], jax.random.uniform(first, (n,)))
    moves, acts = jnp.cumsum(mdp.kernel, axis=2), jnp.cumsum(policy, axis=1)

    def step(states, u):
        actions = draw(acts[states], u[0])
        return draw(moves[states, actions], u[1]), (states, actions)

    last, (states, actions) = jax.lax.scan(
        step, starts, jax.random.uniform(rest, (length, 2, n), acts.dtype)
    )
    return Rollouts(jnp.concatenate([states, last[None]]).T, actions.T)


def draw(cumulative: Float[Array, "n m"], u: Float[Array, " n"]) -> Int[Array, " n"]:
    """For each row the first place whose distribution function is above u."""
    under = jnp.sum(cumulative <= u[:, None].astype(cumulative.dtype), axis=1)
    return jnp.minimum(under, cumulative.shape[1] - 1)


def total(mdp: MDP, values: Float[Array, " states"]) -> ScalarLike:
    """The mean of values at the start."""
    return mdp.start @ values
