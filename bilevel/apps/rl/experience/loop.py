"""The loop that asks, is told, and learns; it holds its tables and a few means, no history."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.apps.rl.experience.feedback import Feedback, Kind
from bilevel.apps.rl.experience.learning import Learner, method, problem
from bilevel.problem import Batch


class Asked(NamedTuple):
    """Two responses of the policy to a prompt, for a user to judge."""

    prompt: int
    responses: tuple[int, int]
    time: int


class Means(NamedTuple):
    """Satisfaction, averaged over a short and a long past."""

    short: float = 0.0
    long: float = 0.0
    seen: int = 0

    def add(self, value: float, window: int) -> "Means":
        seen = self.seen + 1
        fast, slow = max(1 / window, 1 / seen), max(0.1 / window, 1 / seen)
        short = self.short + fast * (value - self.short)
        return Means(short, self.long + slow * (value - self.long), seen)


class Loop:
    """Ask, be told, learn; as an iterator of questions.

    Args:
        prompts, responses: how many there are.
        reference: the policy to stay near, `(prompts, responses)`; uniform when absent.
        explore: the share of pairs drawn uniformly, without which forgotten responses never return.
        window: over about how many reactions satisfaction is averaged.
        fall: satisfaction that falls this much below its long mean rolls the tables back to where
            it was highest; `inf` never does.
        seed: decides the draws.

    Satisfaction is the value of a scalar, and of a preference or correction whether the policy
    finds the better response the likelier.
    """

    def __init__(
        self, prompts: int, responses: int, *, reference=None, learner: Learner = Learner(),
        explore: float = 0.2, window: int = 50, fall: float = float("inf"), seed: int = 0,
    ):  # fmt: skip
        if prompts < 1 or responses < 2:
            raise ValueError("a loop needs at least one prompt and two responses.")
        if not 0 <= explore <= 1:
            raise ValueError(f"explore is {explore}; a share from 0 to 1 is needed.")
        shape = prompts, responses
        table = jnp.full(shape, 1 / responses) if reference is None else jnp.asarray(reference)
        if table.shape != shape or not jnp.allclose(table.sum(axis=1), 1):
            raise ValueError(f"reference must be {shape} probabilities, each row of sum 1.")
        self.shape, self.explore, self.window, self.fall, self.seed = (
            shape, explore, window, fall, seed,
        )  # fmt: skip
        self._problem, self._method = problem(table, learner), method(learner)
        self._state = self._method.init(self._problem, jnp.zeros(shape), jnp.log(table))
        self._step = jax.jit(lambda state, told: self._method.step(
            self._problem, state, Batch(told)))  # fmt: skip
        self.time, self.means, self.rollbacks = 0, Means(), 0
        self._best = (-np.inf, self._state.x, self._state.y)

    @property
    def reward(self):
        return self._state.x

    @property
    def policy(self):
        return jnp.exp(self._state.y)

    def __iter__(self) -> Iterator[Asked]:
        while True:
            yield self.ask()

    def ask(self, prompt: int | None = None) -> Asked:
        """Two responses to a prompt; which ones is decided by the seed and the time."""
        draw = np.random.default_rng((self.seed, self.time))
        prompts, responses = self.shape
        prompt = int(draw.integers(prompts)) if prompt is None else prompt
        p = np.asarray(self.policy[prompt], float)
        law = None if draw.uniform() < self.explore else p / p.sum()
        first, second = draw.choice(responses, p=law), draw.choice(responses, p=law)
        if first == second:
            second = (first + draw.integers(1, responses)) % responses
        return Asked(prompt, (int(first), int(second)), self.time)

    def tell(self, told: Feedback) -> dict[str, float]:
        """Learn from a reaction; what to watch comes back.

        Raises:
            ValueError: the feedback is not about these prompts and responses, or its value is none.
        """
        told.check(*self.shape)
        satisfied = self._satisfaction(told)
        self._state, info = self._step(self._state, told.arrays())
        self.time, self.means = self.time + 1, self.means.add(satisfied, self.window)
        rolled = self._safeguard()
        return {
            "time": self.time,
            "surprise": float(info["upper"]),
            "satisfaction": self.means.short,
            "drift": abs(self.means.short - self.means.long),
            "rolled back": float(rolled),
        }

    def _satisfaction(self, told: Feedback) -> float:
        if told.kind == Kind.SCALAR:
            return told.value
        first, second = (float(self._state.y[told.prompt, one]) for one in told.responses)
        value = told.value if told.kind == Kind.PREFERENCE else 0.0
        return value if first > second else 1 - value if second > first else 0.5

    def _safeguard(self) -> bool:
        """Remember the best tables; return to them, and start the means anew, after a fall."""
        if self.means.seen < self.window:
            return False
        if self.means.short >= self._best[0]:
            self._best = (self.means.short, self._state.x, self._state.y)
        if self.means.short > self.means.long - self.fall:
            return False
        _, x, y = self._best
        self._state = self._state._replace(x=x, y=y)
        self.means, self.rollbacks = Means(), self.rollbacks + 1
        self._best = (-np.inf, x, y)
        return True

    def save(self, path: str | Path) -> None:
        """All that the loop knows, into one .npz file, written whole or not at all."""
        path = Path(path)
        best, x, y = self._best
        numbers = {"time": self.time, "means": self.means, "rollbacks": self.rollbacks}
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, x=self._state.x, y=self._state.y, k=self._state.k, best_x=x, best_y=y,
                     best=best, numbers=json.dumps(numbers))  # fmt: skip
        os.replace(part, path)

    def restore(self, path: str | Path) -> "Loop":
        """Go on from a saved loop of the same settings, bit for bit as if it had never stopped.

        Raises:
            ValueError: the file is of another number of prompts or responses.
        """
        with np.load(path, allow_pickle=False) as held:
            kept: dict[str, Any] = {name: held[name] for name in held.files}
        if kept["x"].shape != self.shape:
            raise ValueError(f"{path} holds tables of {kept['x'].shape}; {self.shape} are needed.")
        like = self._state
        x, y, best_x, best_y = (
            jnp.asarray(kept[name], like.x.dtype) for name in ("x", "y", "best_x", "best_y")
        )
        self._state = like._replace(x=x, y=y, k=jnp.asarray(kept["k"], like.k.dtype))
        numbers = json.loads(str(kept["numbers"]))
        self.time, self.rollbacks = numbers["time"], numbers["rollbacks"]
        self.means = Means(*numbers["means"])
        self._best = (float(kept["best"]), best_x, best_y)
        return self
