"""A reward that a person can read: a number for every token, and one for every length."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from benchmarks.gold_reward import text
from bilevel.apps.llm.policies.policy import Responses


def start() -> dict[str, Array]:
    return {"token": jnp.zeros(text.VOCABULARY), "length": jnp.zeros(text.RESPONSE + 1)}


def reward(x: dict[str, Array], said: Responses) -> Float[Array, " n"]:
    """The sum of the numbers of the tokens, and the number of the length."""
    tokens = jnp.where(said.mask, x["token"][said.tokens], 0)
    return tokens.sum(axis=1) + x["length"][said.mask.sum(axis=1)]
