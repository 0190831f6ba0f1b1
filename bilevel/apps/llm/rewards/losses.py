"""Alignment losses, as functions of the log-probabilities and rewards of a batch.

They do not depend on the policy class: anything with rewards and log-probabilities of whole
responses (sums over tokens) can be trained. `ratio` is `log π(a|s) − log π_ref(a|s)`.
"""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar, ScalarLike

from bilevel.apps.llm.policies.policy import Responses
from bilevel.fields import Checked

PerRow = Float[Array, " n"]
PerSample = Float[Array, "n k"]


# --- contrast of demonstrations and the policy's own responses -----------------------------


class AbstractContrast(Checked):
    """A loss of the reward model: demonstrations high, the policy's own responses low."""

    @abc.abstractmethod
    def __call__(
        self, demonstrated: PerRow, own: PerSample, weights: PerSample, beta: ScalarLike
    ) -> Scalar:
        """The mean loss over demonstrations.

        Args:
            demonstrated: reward of each demonstration.
            own: rewards of responses of the current policy to the same prompt.
            weights: weights of those responses; each row sums to 1.
            beta: weight of the divergence in the lower problem.
        """


class Linear(AbstractContrast):
    """`(E_π r − r(demonstration)) / β`, whose gradient is the exact hypergradient.

    It is that of `−E log π_x(demonstration)`, where `π_x ∝ π_ref exp(r_x/β)`. It is exact if the
    responses are drawn from the current policy at temperature 1 and that policy solves the lower
    problem. The loss is unbounded below: use a weight decay.
    """

    def __call__(self, demonstrated, own, weights, beta):
        difference = (weights * own).sum(axis=1) - demonstrated
        return difference.mean() / jnp.asarray(beta, difference.dtype)


class Logistic(AbstractContrast):
    """`−E log σ(r(demonstration) − r(own))`: bounded, but with another fixed point.

    With a fixed reference the fixed point is `π ∝ π_ref^(β/(1+β)) π_E^(1/(1+β))`, not the
    demonstrators' π_E. With a reference that follows the policy it is π_E.
    """

    def __call__(self, demonstrated, own, weights, beta):
        won = jax.nn.log_sigmoid(demonstrated[:, None] - own)
        return -(weights * won).sum(axis=1).mean()


# --- preferences ----------------------------------------------------------------------------


def preference(chosen: PerRow, rejected: PerRow, smoothing: ScalarLike = 0.0) -> Scalar:
    """The Bradley-Terry loss `−E log σ(r_chosen − r_rejected)`.

    Args:
        smoothing: assumed fraction of flipped labels.
    """
    return -_labels(chosen - rejected, smoothing).mean()


def token_preference(
    chosen: Float[Array, "n time"],
    rejected: Float[Array, "n time"],
    pairs: tuple[Responses, Responses],
    smoothing: ScalarLike = 0.0,
) -> Scalar:
    """The Bradley-Terry loss at every token from the first difference of two responses on.

    Args:
        chosen, rejected: a reward after every token.
        pairs: the two responses, padded alike.
        smoothing: as in `preference`.
    """
    likely = _labels(chosen - rejected, smoothing)
    counts = parted(*pairs).astype(likely.dtype)
    each = (likely * counts).sum(axis=1) / jnp.maximum(counts.sum(axis=1), 1)
    return -each.mean()


def _labels(margin: Array, smoothing: ScalarLike) -> Array:
    """Log-likelihoods of labels, a fraction of which is flipped."""
    wrong = jnp.asarray(smoothing, margin.dtype)
    return jax.nn.log_sigmoid(margin) * (1 - wrong) + jax.nn.log_sigmoid(-margin) * wrong


def parted(a: Responses, b: Responses) -> Bool[Array, "n time"]:
    """True from the first difference of two responses to the end of the longer one."""
    differ = (a.tokens != b.tokens) | (a.mask != b.mask)
    return (jnp.cumsum(differ, axis=1) > 0) & (a.mask | b.mask)


def dpo(chosen: PerRow, rejected: PerRow, beta: ScalarLike, smoothing: ScalarLike = 0.0) -> Scalar:
    """Direct preference optimisation: the Bradley-Terry loss with the reward `β · ratio`.

    Rafailov et al. "Direct preference optimization". NeurIPS 2023, arXiv:2305.18290.

    Args:
        chosen, rejected: log-ratios of the two responses; the loss is log 2 if they are equal.
    """
    beta = jnp.asarray(beta, chosen.dtype)
    return preference(beta * chosen, beta * rejected, smoothing)


def ipo(chosen: PerRow, rejected: PerRow, tau: ScalarLike) -> Scalar:
    """Identity preference optimisation: `E (ratio_chosen − ratio_rejected − 1/(2τ))²`.

    Azar et al. "A general theoretical paradigm to understand learning from human preferences".
    AISTATS 2024, arXiv:2310.12036.
    """
    target = 1 / (2 * jnp.asarray(tau, chosen.dtype))
    return ((chosen - rejected - target) ** 2).mean()


# --- self-play ------------------------------------------------------------------------------


def spin(demonstrated: PerRow, own: PerRow, strength: ScalarLike) -> Scalar:
    """Self-play fine-tuning: prefer demonstrations to responses of the last round's policy.

    Chen et al. "Self-play fine-tuning converts weak language models to strong language models".
    ICML 2024, arXiv:2401.01335.

    Args:
        demonstrated, own: ratios to the policy of the last round, which gave the second.
        strength: λ. An exact round multiplies the log error by `1 − 1/λ`.
    """
    return dpo(demonstrated, own, strength)
