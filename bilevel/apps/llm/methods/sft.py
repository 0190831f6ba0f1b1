"""SFT: supervised fine-tuning on demonstrations."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel.apps.llm.methods.align import AbstractAlignment, Aligned
from bilevel.apps.llm.methods.single_level import (
    adam,
    demonstrations_of,
    kept_only,
    minimise,
    of_policy,
)
from bilevel.apps.llm.policies.policy import AbstractPolicy
from bilevel.fields import nonnegative
from bilevel.updates import AbstractUpdate, as_update


class SFT(AbstractAlignment):
    """Supervised fine-tuning: `−E log π(demonstration)`. The optimum is the demonstrators' policy.

    The loss is the mean over demonstrations of the sum over their tokens.

    Attributes:
        per_row: mean number of demonstrations per row, if they are packed (`packing.packed`). The
            loss is then the mean over rows divided by it, which has the same expectation.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    per_row: ScalarLike = nonnegative(1.0)

    def run(self, task, start, options):
        kept = kept_only(task, demonstrations=demonstrations_of(task))
        loss = Likelihood(task.policy, self.per_row)
        found = minimise(loss, start.policy, self.update, kept, options, of_policy)
        return Aligned(found.x, None, [found])


class Likelihood(eqx.Module):
    policy: AbstractPolicy
    per_row: ScalarLike = nonnegative(1.0)

    def __call__(self, x, batch):
        logp = self.policy.logprob(x, batch.demonstrations)
        return -logp.mean() / jnp.asarray(self.per_row, logp.dtype)
