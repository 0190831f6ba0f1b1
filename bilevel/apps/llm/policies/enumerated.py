"""A language model small enough to enumerate: every expectation over responses is a sum.

With V tokens, responses of H tokens and S prompts there are N = V^H responses per prompt. The
policy is any autoregressive network. Evaluated once on each of the 1 + V + … + V^(H−1) prefixes, it
gives the exact distribution, and so the exact divergence, reward, objective and optimum
`π* ∝ π_ref exp(r/β)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Scalar

from bilevel import trees
from bilevel.apps.llm.policies.policy import AbstractPolicy, Preferences, Responses
from bilevel.apps.llm.policies.tables import Table, expected, kl, objective, optimum
from bilevel.typing import RandomKey


class Enumerated(AbstractPolicy):
    """A policy over `vocabulary ** length` responses to each of `prompts` prompts.

    A prompt is an index. A response has as index its tokens read as a number in base V, with the
    first token as the most significant digit.

    Attributes:
        network: `y -> [logits of the next token]`, one array (prompts, V^t, V) for each t < length,
            whose middle axis runs over the prefixes of t tokens.
    """

    network: Callable
    vocabulary: int = eqx.field(static=True)
    length: int = eqx.field(static=True)
    prompts: int = eqx.field(static=True)

    @property
    def enumerable(self) -> bool:
        return True

    @property
    def count(self) -> int:
        """The number of responses to a prompt."""
        return self.vocabulary**self.length

    def levels(self, y: PyTree) -> list[Float[Array, "prompts prefixes V"]]:
        """Log-probabilities of the next token after every prefix, by its length."""
        logits = self.network(y)
        return [jax.nn.log_softmax(level.astype(_wide(level)), axis=-1) for level in logits]

    def log_table(self, y: PyTree) -> Table:
        """Log-probabilities of all responses to all prompts."""
        total = jnp.zeros((self.prompts, 1), _wide(jax.tree.leaves(y)[0]))
        for level in self.levels(y):
            total = (total[:, :, None] + level).reshape(self.prompts, -1)
        return total

    def token_logprobs(self, y, responses):
        s, tokens, prefix = responses.prompts, responses.tokens, jnp.zeros_like(responses.prompts)
        found = []
        for t, level in enumerate(self.levels(y)):
            found.append(level[s, prefix, tokens[:, t]])
            prefix = prefix * self.vocabulary + tokens[:, t]
        return jnp.where(responses.mask, jnp.stack(found, axis=1), 0)

    def sample(self, y, prompts, key, *, temperature=1.0):
        prefix, tokens = jnp.zeros_like(prompts), []
        keys = jax.random.split(key, self.length)
        for level, one in zip(self.levels(y), keys, strict=True):
            tokens.append(jax.random.categorical(one, level[prompts, prefix] / temperature))
            prefix = prefix * self.vocabulary + tokens[-1].astype(prefix.dtype)
        return self.response(prompts, prefix)

    @property
    def tabular(self) -> bool:
        return self.network is _bandit_levels

    def response(self, prompts: Int[Array, " n"], number: Int[Array, " n"]) -> Responses:
        """The responses with the given indices."""
        powers = jnp.asarray([self.vocabulary**t for t in reversed(range(self.length))])
        tokens = (number[:, None] // powers[None].astype(number.dtype)) % self.vocabulary
        return Responses(prompts, tokens, jnp.ones(tokens.shape, bool))

    def number(self, responses: Responses) -> Int[Array, " n"]:
        """The indices of responses: the inverse of `response`."""
        total = jnp.zeros_like(responses.tokens[:, 0])
        for t in range(self.length):
            total = total * self.vocabulary + responses.tokens[:, t]
        return total

    def everything(self) -> Responses:
        """All responses to all prompts, in the order of a ravelled table."""
        prompts = jnp.repeat(jnp.arange(self.prompts), self.count)
        return self.response(prompts, jnp.tile(jnp.arange(self.count), self.prompts))

    def reward_table(self, reward: Callable, x: PyTree) -> Table:
        """The rewards `reward(x, responses)` of all responses to all prompts."""
        return reward(x, self.everything()).reshape(self.prompts, self.count)


def _wide(array: Array) -> Any:
    return trees.widest(array)


def bandit(prompts: int, actions: int) -> Enumerated:
    """Responses of one token with free logits: y is an array (prompts, actions)."""
    return Enumerated(_bandit_levels, actions, 1, prompts)


def _bandit_levels(y):
    return [y[:, None, :]]


class PrefixNetwork(eqx.Module):
    """Two tanh layers on a prefix of tokens, its length and the number of the prompt, one-hot."""

    vocabulary: int = eqx.field(static=True)
    length: int = eqx.field(static=True)
    prompts: int = eqx.field(static=True)

    def init(self, key: RandomKey, width: int = 64) -> dict[str, Any]:
        """Weights N(0, 1)/√8 in the first layer, N(0, 1)/√width in the others; biases zero."""
        inputs = self.length * (self.vocabulary + 1) + self.prompts
        one, two, three = jax.random.split(key, 3)

        def layer(key, rows, columns, divisor):
            weight = jax.random.normal(key, (rows, columns)) / divisor**0.5
            return {"weight": weight, "bias": jnp.zeros(columns)}

        return {
            "first": layer(one, inputs, width, 8),
            "second": layer(two, width, width, width),
            "last": layer(three, width, self.vocabulary, width),
        }

    def __call__(self, y):
        first, of_tokens = y["first"], self.length * self.vocabulary
        tokens = first["weight"][:of_tokens].reshape(self.length, self.vocabulary, -1)
        position = first["weight"][of_tokens : of_tokens + self.length]
        prompt = first["weight"][of_tokens + self.length :] + first["bias"][None]
        logits = []
        # The first layer of one-hot inputs is a sum of rows, built up prefix by prefix.
        prefix = jnp.zeros((1, tokens.shape[-1]), tokens.dtype)
        for t in range(self.length):
            h = jnp.tanh((prefix + position[t][None])[None] + prompt[:, None])
            h = jnp.tanh(h @ y["second"]["weight"] + y["second"]["bias"][None, None])
            logits.append(h @ y["last"]["weight"] + y["last"]["bias"][None, None])
            prefix = (prefix[:, None] + tokens[t][None]).reshape(-1, tokens.shape[-1])
        return logits


def pair_rewards(x: Float[Array, "groups V V"], responses: Responses) -> Float[Array, " n"]:
    """`r(s, a) = Σ_t x[s mod groups, a_(t−1), a_t]`: a table of adjacent tokens."""
    group, tokens = responses.prompts % x.shape[0], responses.tokens
    pairs = x[group[:, None], tokens[:, :-1], tokens[:, 1:]]
    return jnp.where(responses.mask[:, 1:], pairs, 0).sum(axis=1)


class FreeRewards(eqx.Module):
    """A separate reward for every response to every prompt: x is a table."""

    policy: Enumerated

    def __call__(self, x: Table, responses: Responses) -> Float[Array, " n"]:
        return x[responses.prompts, self.policy.number(responses)]


def draw(policy: Enumerated, log_p: Table, prompts: Int[Array, " n"], key: RandomKey) -> Responses:
    """A response to each prompt, from a table."""
    return policy.response(prompts, jax.random.categorical(key, log_p[prompts], axis=-1))


def label(rewards: Table, policy: Enumerated, a: Responses, b: Responses, key) -> Preferences:
    """Preferences by the Bradley-Terry model: a is preferred with probability `σ(r_a − r_b)`."""
    r_a, r_b = (rewards[r.prompts, policy.number(r)] for r in (a, b))
    first = jax.random.bernoulli(key, jax.nn.sigmoid(r_a - r_b))

    def pick(p, q):
        return jnp.where(first.reshape(-1, *[1] * (p.ndim - 1)), p, q)

    return Preferences(jax.tree.map(pick, a, b), jax.tree.map(pick, b, a))


class World(NamedTuple):
    """A tiny alignment problem with a known solution."""

    policy: Enumerated
    reference: PyTree  # parameters of π_ref
    rewards: Table  # the true ones
    beta: float
    demonstrations: Responses  # of the optimum
    preferences: Preferences  # of responses of the reference
    held_out: Preferences  # more pairs, labelled by the true rewards without noise

    @property
    def log_reference(self) -> Table:
        return self.policy.log_table(self.reference)

    @property
    def log_optimum(self) -> Table:
        return optimum(self.log_reference, self.rewards, self.beta)

    def reached(self, y: PyTree) -> Scalar:
        """The objective of a policy, scaled: 0 for the reference, 1 for the optimum."""
        reference, best = self.log_reference, self.log_optimum
        low, value, high = (
            objective(log_p, reference, self.rewards, self.beta)
            for log_p in (reference, self.policy.log_table(y), best)
        )
        return (value - low) / (high - low)

    def divergence(self, y: PyTree) -> Scalar:
        """`KL(π*‖π_y)`."""
        return kl(self.log_optimum, self.policy.log_table(y))

    def reward_of(self, y: PyTree) -> Scalar:
        """The expected true reward of a policy."""
        return expected(self.policy.log_table(y), self.rewards)

    def accuracy(self, reward: Callable, x: PyTree) -> Scalar:
        """Fraction of held-out pairs with unequal true rewards that a reward orders correctly."""
        (better, worse), (high, low) = (
            [of(rows) for rows in self.held_out]
            for of in (lambda rows: reward(x, rows), self._true_reward)
        )
        differ = high - low > 1e-6  # responses of equal reward have no order
        right = (jnp.sign(better - worse) + 1) / 2  # a tie is half right
        return jnp.where(differ, right, 0).sum() / differ.sum().astype(right.dtype)

    def _true_reward(self, rows: Responses) -> Float[Array, " n"]:
        return self.rewards[rows.prompts, self.policy.number(rows)]


def world(
    seed: int = 0,
    *,
    demonstrations: int = 300,
    preferences: int = 300,
    vocabulary: int = 6,
    length: int = 4,
    prompts: int = 8,
    beta: float = 0.5,
) -> World:
    """The enumerated test problem: a random reference network, and a random reward table.

    Demonstrations are drawn from the exact optimum, preference pairs from the reference with
    Bradley-Terry labels; prompts are uniform. The policy is a `PrefixNetwork`.
    """
    network = PrefixNetwork(vocabulary, length, prompts)
    made = _world(jax.random.key(seed), network, demonstrations, preferences, beta)
    return made._replace(beta=beta)


@eqx.filter_jit
def _world(key, network: PrefixNetwork, demonstrations: int, preferences: int, beta) -> World:
    keys = jax.random.split(key, 6)
    vocabulary, length, prompts = network.vocabulary, network.length, network.prompts
    policy, reference = Enumerated(network, vocabulary, length, prompts), network.init(keys[0])
    table = jax.random.normal(keys[1], (2, vocabulary, vocabulary))
    rewards, log_reference = policy.reward_table(pair_rewards, table), policy.log_table(reference)
    best = optimum(log_reference, rewards, beta)

    def random_prompts(key, n):
        return jax.random.randint(key, (n,), 0, prompts)

    def pairs(key, n, judged):
        one, two, three, last = jax.random.split(key, 4)
        prompts = random_prompts(one, n)
        a, b = (draw(policy, log_reference, prompts, k) for k in (two, three))
        return label(judged, policy, a, b, last)

    demos = draw(policy, best, random_prompts(keys[2], demonstrations), keys[3])
    compared = pairs(keys[4], preferences, rewards)
    ordered = pairs(keys[5], 2000, 1e6 * rewards)  # labels without noise
    return World(policy, reference, rewards, beta, demos, compared, ordered)
