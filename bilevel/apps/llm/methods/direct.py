"""DPO, IPO and AIHF-DPO: preferences without a reward model."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel.apps.llm.methods.align import AbstractAlignment, Aligned
from bilevel.apps.llm.methods.sft import Likelihood
from bilevel.apps.llm.methods.single_level import (
    adam,
    demonstrations_of,
    kept_only,
    minimise,
    of_policy,
    pairs_referred,
    preferences_of,
)
from bilevel.apps.llm.methods.task import Weights, by_counts
from bilevel.apps.llm.policies.policy import AbstractPolicy, log_ratios
from bilevel.apps.llm.rewards import losses
from bilevel.fields import fraction, nonnegative
from bilevel.updates import AbstractUpdate, as_update


class DPO(AbstractAlignment):
    """Direct preference optimisation with the β of the task; same optimum as RLHF.

    Attributes:
        smoothing: assumed fraction of flipped labels (conservative DPO).
        reference_free: omit the reference from the ratio.
        rows: batch size for the log-probabilities of the reference; all rows if `None`.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    smoothing: ScalarLike = fraction(0.0)
    reference_free: bool = eqx.field(static=True, default=False)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        pairs = pairs_referred(task, preferences_of(task), self.rows, self.reference_free)
        loss = Direct(task.policy, task.beta, self.smoothing)
        kept = kept_only(task, preferences=pairs)
        found = minimise(loss, start.policy, self.update, kept, options, of_policy)
        return Aligned(found.x, None, [found])


class Direct(eqx.Module):
    """The DPO loss, on preferences with reference log-probabilities."""

    policy: AbstractPolicy
    beta: ScalarLike
    smoothing: ScalarLike

    def __call__(self, x, batch):
        chosen, rejected = log_ratios(self.policy, x, batch.preferences)
        return losses.dpo(chosen, rejected, self.beta, self.smoothing)


class IPO(AbstractAlignment):
    """Identity preference optimisation.

    With pairs from the reference, the optimum is `π ∝ π_ref exp(p(a beats the reference)/τ)`.

    Attributes:
        tau: τ.
        per_token: divide each ratio by the length of the response, as several libraries do; the
            paper uses the sum.
        rows: as in `DPO`.
    """

    tau: ScalarLike = nonnegative()
    per_token: bool = eqx.field(static=True, default=False)
    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        kept = kept_only(task, preferences=pairs_referred(task, preferences_of(task), self.rows))
        loss = _Identity(task.policy, self.tau, self.per_token)
        found = minimise(loss, start.policy, self.update, kept, options, of_policy)
        return Aligned(found.x, None, [found])


class _Identity(eqx.Module):
    policy: AbstractPolicy
    tau: ScalarLike
    per_token: bool = eqx.field(static=True)

    def __call__(self, x, batch):
        chosen, rejected = log_ratios(self.policy, x, batch.preferences)
        if self.per_token:
            lengths = (rows.mask.sum(axis=1).astype(chosen.dtype) for rows in batch.preferences)
            chosen, rejected = (r / n for r, n in zip((chosen, rejected), lengths, strict=True))
        return losses.ipo(chosen, rejected, self.tau)


class AIHFDPO(AbstractAlignment):
    """AIHF with the reward `β log(π/π_ref)`: SFT on demonstrations plus DPO on preferences.

    Attributes:
        weights: weights of the two parts; proportional to the counts if `None`.
        smoothing, rows: as in `DPO`.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    weights: Weights | None = None
    smoothing: ScalarLike = fraction(0.0)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        pairs = pairs_referred(task, preferences_of(task), self.rows)
        kept = kept_only(task, demonstrations=demonstrations_of(task), preferences=pairs)
        weights = by_counts(task) if self.weights is None else self.weights
        loss = Sum(Likelihood(task.policy), Direct(task.policy, task.beta, self.smoothing),
                    Weights(*map(jnp.asarray, weights)))  # fmt: skip
        found = minimise(loss, start.policy, self.update, kept, options, of_policy)
        return Aligned(found.x, None, [found])


class Sum(eqx.Module):
    """The sum of a loss on demonstrations and a loss on preferences."""

    demonstrations: Callable
    preferences: Callable
    weights: Weights

    def __call__(self, x, batch):
        found = self.demonstrations(x, batch), self.preferences(x, batch)
        w1, w2 = (jnp.asarray(w, f.dtype) for w, f in zip(self.weights, found, strict=True))
        return w1 * found[0] + w2 * found[1]
