"""What is to be forgotten and what retained, as two losses of the parameters of a policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from bilevel.apps.llm.data.sources import Together
from bilevel.apps.llm.methods.task import rows_of
from bilevel.apps.llm.policies.model import Decoder
from bilevel.apps.llm.policies.policy import AbstractPolicy, Responses, log_ratio, stopped
from bilevel.apps.llm.unlearning import losses
from bilevel.data import Data


class Answers(NamedTuple):
    """A batch: answers to forget, and answers to retain."""

    forget: Responses
    retain: Responses


class NPO(eqx.Module):
    """`losses.npo`, on answers with reference log-probabilities (`policy.referred`)."""

    policy: AbstractPolicy
    beta: ScalarLike = 0.1

    def __call__(self, x: PyTree, batch: Answers) -> Scalar:
        return losses.npo(log_ratio(self.policy, x, batch.forget), self.beta)


class Ascent(eqx.Module):
    """Gradient ascent on the tokens to forget."""

    policy: AbstractPolicy

    def __call__(self, x: PyTree, batch: Answers) -> Scalar:
        logprobs = self.policy.token_logprobs(x, batch.forget)
        return losses.ascent(logprobs, batch.forget.mask)


class Steering(eqx.Module):
    """RMU: the states that answers to forget are read from move to one vector (`steering`)."""

    policy: Decoder
    layers: int = eqx.field(static=True)  # below the states
    target: Float[Array, " width"]

    def __call__(self, x: PyTree, batch: Answers) -> Scalar:
        states = self.policy.token_states(x, batch.forget, self.layers)
        return losses.apart(states, self.target.astype(states.dtype)[None, None], batch.forget.mask)


class SameStates(eqx.Module):
    """The states that answers to retain are read from stay where the reference has them."""

    policy: Decoder
    layers: int = eqx.field(static=True)
    reference: PyTree

    def __call__(self, x: PyTree, batch: Answers) -> Scalar:
        new = self.policy.token_states(x, batch.retain, self.layers)
        old = self.policy.token_states(stopped(self.reference), batch.retain, self.layers)
        return losses.apart(new, old, batch.retain.mask)


class Likelihood(eqx.Module):
    """Fine-tuning on the tokens to retain."""

    policy: AbstractPolicy

    def __call__(self, x: PyTree, batch: Answers) -> Scalar:
        logprobs = self.policy.token_logprobs(x, batch.retain)
        return losses.likelihood(logprobs, batch.retain.mask)


class Divergence(eqx.Module):
    """Mean `KL(π_ref ‖ π)` of a token to retain."""

    policy: Decoder
    reference: PyTree

    def __call__(self, x: PyTree, batch: Answers) -> Scalar:
        each = self.policy.token_divergences(x, self.reference, batch.retain)
        return losses.mean(each, batch.retain.mask)


def data(answers: Answers, batch_size: int | None = None) -> Data:
    """Batches of so many rows of each kind; all if `None`."""
    named = zip(Answers._fields, answers, strict=True)
    sources: dict[str, Any] = {name: rows_of(name, rows, batch_size) for name, rows in named}
    return Data(Together(Answers(**sources)))


def probability(policy: AbstractPolicy, rows: Responses) -> Callable[[PyTree, PyTree], Scalar]:
    """A metric: mean probability of the tokens of some answers under the policy x."""
    return Partial(_probability, policy, rows)


def _probability(policy, rows, x, y):
    return losses.mean(jnp.exp(policy.token_logprobs(x, rows)), rows.mask)
