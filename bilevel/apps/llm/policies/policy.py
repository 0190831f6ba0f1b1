"""The interface of a policy: log-probabilities of responses, and sampling."""

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bilevel import trees
from bilevel.fields import Checked
from bilevel.typing import RandomKey


class Responses(NamedTuple):
    """Responses to prompts, one per row.

    Prompts are any tree of arrays with n rows that the policy can read. `mask` marks the tokens of
    the response, including its stop token; rows are padded on the right. `reference` may contain
    the log-probability of each row under a reference, so that it is computed once (`referred`).
    """

    prompts: PyTree[Array]
    tokens: Int[Array, "n time"]
    mask: Bool[Array, "n time"]
    reference: Float[Array, " n"] | None = None


class Preferences(NamedTuple):
    """Pairs of responses to the same prompts, the preferred one first."""

    chosen: Responses
    rejected: Responses


class AbstractPolicy(Checked):
    """A distribution over responses, with parameters y (any tree of floating arrays)."""

    @abc.abstractmethod
    def token_logprobs(self, y: PyTree, responses: Responses) -> Float[Array, "n time"]:
        """Log-probability of every response token given earlier ones; zero outside the mask."""

    @abc.abstractmethod
    def sample(
        self, y: PyTree, prompts: PyTree, key: RandomKey, *, temperature: float = 1.0
    ) -> Responses:
        """One response to each prompt; the next token's logits are divided by the temperature."""

    def logprob(self, y: PyTree, responses: Responses) -> Float[Array, " n"]:
        """Log-probability of whole responses: the sum over their tokens, never the mean."""
        return self.token_logprobs(y, responses).sum(axis=1)

    def logprobs(self, y: PyTree, several: Sequence[Responses]) -> list[Float[Array, " n"]]:
        """`logprob` of several responses to the same prompts, which may share computation."""
        return [self.logprob(y, responses) for responses in several]

    @property
    def enumerable(self) -> bool:
        """Whether all responses can be listed: `log_table` and `reward_table` then exist."""
        return False

    @property
    def tabular(self) -> bool:
        """Whether y holds the logits of whole responses, an array (prompts, responses)."""
        return False

    def log_table(self, y: PyTree) -> Float[Array, "prompts responses"]:
        """Log-probability of every response to every prompt.

        Raises:
            TypeError: the responses cannot be listed.
        """
        raise TypeError(f"{type(self).__name__} cannot list its responses; draw them.")

    def reward_table(
        self, reward: Callable[[PyTree, Responses], Array], x: PyTree
    ) -> Float[Array, "prompts responses"]:
        """Reward of every response to every prompt.

        Raises:
            TypeError: the responses cannot be listed.
        """
        raise TypeError(f"{type(self).__name__} cannot list its responses; draw them.")


def repeated(tree: PyTree, times: int) -> PyTree:
    """Repeat every row `times` times: row `i · times + j` is the j-th copy of row i."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), tree)


def size(tree: PyTree) -> int:
    """The number of rows."""
    return jax.tree.leaves(tree)[0].shape[0]


def referred(
    policy: AbstractPolicy, reference: PyTree, responses: Responses, *, rows: int | None = None
) -> Responses:
    """The same responses with their log-probabilities under a reference, computed once.

    Args:
        reference: parameters of the policy.
        rows: batch size; all rows at once if `None`.
    """
    responses = responses._replace(reference=None)
    return responses._replace(reference=_logprobs(policy, reference, responses, rows))


@eqx.filter_jit
def _logprobs(policy, reference, responses, rows):
    return by_rows(lambda few: policy.logprob(reference, few), responses, rows)


def by_rows(fn: Callable[[PyTree], Array], tree: PyTree, rows: int | None) -> Array:
    """`fn(tree)`, which maps every row by itself, for so many rows at a time; all if `None`."""
    n = size(tree)
    if rows is None or rows >= n:
        return fn(tree)
    at = jnp.arange(-(-n // rows) * rows, dtype=jnp.int32) % n  # pad to full batches
    found = jax.lax.map(
        lambda at: fn(jax.tree.map(lambda leaf: leaf[at], tree)), at.reshape(-1, rows)
    )
    return found.reshape(-1, *found.shape[2:])[:n]


def log_ratio(policy: AbstractPolicy, y: PyTree, responses: Responses) -> Float[Array, " n"]:
    """`log π_y(a|s) − log π_ref(a|s)` of responses with reference log-probabilities.

    Raises:
        ValueError: the responses have no reference log-probabilities.
    """
    return log_ratios(policy, y, [responses])[0]


def log_ratios(
    policy: AbstractPolicy, y: PyTree, several: Sequence[Responses]
) -> list[Float[Array, " n"]]:
    """`log_ratio` of several responses to the same prompts, such as a pair of `Preferences`."""
    references = [responses.reference for responses in several if responses.reference is not None]
    if len(references) < len(several):
        raise ValueError(
            "these responses carry no reference log-probabilities: make them with "
            "referred(policy, reference, responses)."
        )
    return [
        logp - jax.lax.stop_gradient(reference).astype(logp.dtype)
        for logp, reference in zip(policy.logprobs(y, several), references, strict=True)
    ]


def generate(
    policy: AbstractPolicy, y: PyTree, prompts: PyTree, key: RandomKey, *, temperature: float = 1.0
) -> Responses:
    """One response to each prompt, under `jax.jit` and with gradients stopped."""
    return _generate(policy, y, prompts, key, temperature)


@eqx.filter_jit
def _generate(policy, y, prompts, key, temperature):
    return stopped(policy.sample(y, prompts, key, temperature=temperature))


def stopped(tree: PyTree) -> PyTree:
    """`jax.lax.stop_gradient` of the floating leaves; masks and tokens are unchanged."""
    return trees.map(jax.lax.stop_gradient, tree)
