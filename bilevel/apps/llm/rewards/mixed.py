"""Several rewards, mixed as multipliers say.

Moskovitz, Singh, Strouse, Sandholm, Salakhutdinov, Dragan, McAleer. "Confronting reward model
overoptimization with constrained RLHF". ICLR 2024, arXiv:2310.04373.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.apps.llm.policies.policy import Responses

Scores = Callable[[Responses], Float[Array, " n"]]  # a reward that is learned no more


class Mixed(eqx.Module):
    """`Σ_i μ_i r_i / (m − Σ_i μ_i)` with multipliers `μ = squash(x)` of m rewards.

    Beside `β KL(π ‖ π_ref)` it has the maximiser of `Σ_i μ_i E r_i − (m − Σ_i μ_i) β KL`: the more
    the rewards count, the less the divergence does.

    Attributes:
        rewards: functions `responses -> (n,)`.
        squash: `jax.nn.sigmoid`, for lower bounds on rewards: one that is above its bound is
            pushed no more. `jnp.tanh`, for equations: it may be pushed back.
    """

    rewards: tuple[Scores, ...]
    squash: Callable = eqx.field(static=True, default=jax.nn.sigmoid)

    def each(self, responses: Responses) -> Float[Array, "n rewards"]:
        """All rewards of the responses."""
        return jnp.stack([reward(responses) for reward in self.rewards], axis=1)

    def multipliers(self, x: Float[Array, " rewards"]) -> Float[Array, " rewards"]:
        return self.squash(x)

    def weights(self, x: Float[Array, " rewards"]) -> Float[Array, " rewards"]:
        """Factors of the rewards, where that of `β KL` is 1."""
        mu = self.multipliers(x)
        return mu / (len(self.rewards) - mu.sum())

    def __call__(self, x: Float[Array, " rewards"], responses: Responses) -> Float[Array, " n"]:
        return self.each(responses) @ self.weights(x)
