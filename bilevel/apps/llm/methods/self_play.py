"""Self-play methods, which train against the policy of the previous round."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel.apps.llm.methods.align import AbstractAlignment, Aligned, Options, Start
from bilevel.apps.llm.methods.direct import Direct, Sum
from bilevel.apps.llm.methods.single_level import (
    adam,
    demonstrations_of,
    kept_only,
    minimise,
    of_policy,
    pairs_referred,
    preferences_of,
)
from bilevel.apps.llm.methods.task import Task, Weights, by_counts
from bilevel.apps.llm.policies.policy import AbstractPolicy, generate, log_ratios, referred
from bilevel.apps.llm.rewards import losses
from bilevel.fields import nonnegative
from bilevel.updates import AbstractUpdate, as_update


class SPIN(AbstractAlignment):
    """Self-play: discriminates demonstrations from responses of the previous round's policy.

    A round generates one response to every demonstration prompt and takes `steps` updates. A round
    solved to the end multiplies the log error by `1 − 1/strength`. This diverges for a strength
    below ½, so with the usual 0.1 a round must stop well before the end.

    Attributes:
        strength: λ.
        rounds: number of rounds.
        replay: also learn on the responses of the previous round.
        rows: as in `DPO`.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    strength: ScalarLike = nonnegative(0.1)
    rounds: int = eqx.field(static=True, default=1)
    replay: bool = eqx.field(static=True, default=False)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        loss = _SelfPlay(task.policy, self.strength)
        return _play(
            self, loss, kept_only(task, demonstrations=demonstrations_of(task)), start, options
        )


class SelfPlayAIHF(AbstractAlignment):
    """Self-play on demonstrations plus DPO on preferences, with the last policy as reference.

    Attributes:
        weights: weights of the two parts; proportional to the counts if `None`.
        strength: λ of both parts; the β of the task if `None`.
        rounds, replay, rows: as in `SPIN`.
    """

    update: AbstractUpdate = eqx.field(converter=as_update, default_factory=adam)
    weights: Weights | None = None
    strength: ScalarLike | None = None
    rounds: int = eqx.field(static=True, default=1)
    replay: bool = eqx.field(static=True, default=False)
    rows: int | None = eqx.field(static=True, default=None)

    def run(self, task, start, options):
        strength = task.beta if self.strength is None else jnp.asarray(self.strength)
        weights = by_counts(task) if self.weights is None else self.weights
        parts = _SelfPlay(task.policy, strength), Direct(task.policy, strength, jnp.asarray(0.0))
        loss = Sum(*parts, Weights(*map(jnp.asarray, weights)))
        both = kept_only(
            task, demonstrations=demonstrations_of(task), preferences=preferences_of(task)
        )
        return _play(self, loss, both, start, options)


class _SelfPlay(eqx.Module):
    policy: AbstractPolicy
    strength: ScalarLike

    def __call__(self, x, batch):
        demonstrated, own = log_ratios(self.policy, x, batch.pairs)
        return losses.spin(demonstrated, own, self.strength)


def _play(method: SPIN | SelfPlayAIHF, loss, task: Task, start: Start, options: Options) -> Aligned:
    """Rounds of generation and training, each against the policy that it starts from."""
    found, before = Aligned(start.policy, None, []), None
    demonstrations = demonstrations_of(task)
    for key in jax.random.split(options.key, method.rounds):
        y = found.policy
        generation_key, training = jax.random.split(key)
        responses = generate(task.policy, y, demonstrations.prompts, generation_key)
        pairs = demonstrations._replace(reference=None), responses
        both = pairs if before is None else jax.tree.map(_joined, pairs, before)
        before = pairs if method.replay else None
        opponent = eqx.tree_at(lambda t: t.reference, task, y)
        demonstrated, own = (referred(task.policy, y, rows, rows=method.rows) for rows in both)
        preferences = None
        if task.preferences is not None:
            preferences = pairs_referred(opponent, task.preferences, method.rows)
        kept, now = (
            kept_only(task, preferences=preferences),
            options.after(found.results, key=training),
        )
        result = minimise(loss, y, method.update, kept, now, of_policy, (demonstrated, own))
        found = Aligned(result.x, None, [*found.results, result])
        if not found.ended:
            break
    return found


def _joined(a, b):
    return jnp.concatenate([a, b])
