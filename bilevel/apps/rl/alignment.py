"""BARFI: given rewards, some of them misleading, mixed so that the agent does what was meant.

Reference: Gupta, Chandak, Jordan, Thomas, Castro da Silva. "Behavior alignment via reward function
optimization". NeurIPS 2023, arXiv:2310.19007.
Differs from the paper: the weights do not depend on the state, and the discount is not learned.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike

from bilevel.apps.rl import response
from bilevel.apps.rl.mdp import MDP, Table, evaluate
from bilevel.problem import Problem

Weights = dict[str, Array]


def mixed(x: Weights, primary: Table, auxiliary: Table) -> Table:
    """`φ₁ + φ₂ r_primary + φ₃ r_auxiliary`: φ₁ is a table, the two weights are numbers."""
    return x["free"] + x["primary"] * primary + x["auxiliary"] * auxiliary


def start(mdp: MDP) -> Weights:
    """Both rewards simply added."""
    dtype = mdp.kernel.dtype
    one = jnp.ones((), dtype)
    return {"free": jnp.zeros(mdp.shape, dtype), "primary": one, "auxiliary": one}


def problem(mdp: MDP, primary: Table, auxiliary: Table, decay: ScalarLike = 1e-3) -> Problem:
    """Maximise the true return `E[Σ γ^t r_primary] − decay ‖φ‖²` of the agent over weights φ.

    The agent is soft optimal for the mixed reward. Start from `start`, and from a table of zeros.
    """

    def reward(x):
        return mixed(x, primary, auxiliary)

    def loss(x, policy):
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))
        return jnp.asarray(decay, policy.dtype) * squares - returned(mdp, primary, policy)

    return response.problem(mdp, reward, loss)


def returned(mdp: MDP, primary: Table, policy: Table):
    """The discounted true reward of a policy."""
    return mdp.start @ evaluate(mdp, primary, policy, entropy=False)
