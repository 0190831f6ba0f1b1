"""What a user says about responses."""

import enum
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class Kind(enum.IntEnum):
    """How a user reacts."""

    PREFERENCE = 0  # value: 1 if the first of two responses is better, 0 if the second is
    SCALAR = 1  # value: how good the first response is, any finite number
    CORRECTION = 2  # the second response is what the first should have been


class Arrays(NamedTuple):
    """Feedback as a batch of one, for compiled code."""

    prompt: Array
    first: Array
    second: Array
    kind: Array
    value: Array


class Feedback(NamedTuple):
    """One reaction of a user, to responses that a policy gave."""

    prompt: int
    responses: tuple[int, int]
    time: int
    kind: Kind
    value: float

    def arrays(self) -> Arrays:
        first, second = map(jnp.asarray, self.responses)
        kind, value = jnp.asarray(int(self.kind)), jnp.asarray(self.value, float)
        return Arrays(jnp.asarray(self.prompt), first, second, kind, value)

    def check(self, prompts: int, responses: int) -> None:
        """Raise an error if it cannot be learned from.

        Raises:
            ValueError: a number is out of its range; which, and what is needed.
        """
        if not 0 <= self.prompt < prompts:
            raise ValueError(
                f"feedback is about prompt {self.prompt}; there are 0 to {prompts - 1}."
            )
        for one in self.responses:
            if not 0 <= one < responses:
                raise ValueError(
                    f"feedback is about response {one}; there are 0 to {responses - 1}."
                )
        if not math.isfinite(self.value):
            raise ValueError(f"the value of feedback is {self.value}; a finite number is needed.")
        if self.kind == Kind.PREFERENCE and not 0 <= self.value <= 1:
            raise ValueError(f"a preference is {self.value}; a number from 0 to 1 is needed.")
